"""The settings of a loader that `rsbdali tune` found best on this machine: kept in the cache folder, found again.

One JSON file for each machine, device and size of a recipe's images: a home folder may be many machines'. None of the
settings changes a batch, but for `decode`, which is "auto" unless the user let pixels change.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from rsbdali.atomic import write_text
from rsbdali.bounded import NotPlain, is_count, parse_json, read_text, shown
from rsbdali.data.cache import default_folder
from rsbdali.distributed.devices import default_threads
from rsbdali.distributed.world import World
from rsbdali.environment import cpu_model
from rsbdali.errors import RsbdaliError
from rsbdali.recipe import Recipe

DEFAULT_PREFETCH = 2
MOST = {"threads": 4096, "chunk": 31, "prefetch": 64}


@dataclass(frozen=True, kw_only=True, order=True)
class LoaderSettings:
    """What can be tuned of a training loader.

    Attributes:
        threads: CPU threads.
        chunk: most images that decode=cpu gives DALI at a time.
        prefetch: batches in flight.
        decode: where images are decoded (`loader.decode_mode`); "auto" leaves that as it is.
    """

    threads: int
    chunk: int
    prefetch: int
    decode: str = "auto"

    @classmethod
    def of(cls, values: Any) -> "LoaderSettings":
        """From plain values that may have been changed by hand.

        Raises:
            NotPlain: they are no settings.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or values.keys() != names or not isinstance(values["decode"], str):
            raise NotPlain(f"holds no settings of a loader: {shown(values)}")
        for name, most in MOST.items():
            if not is_count(values[name]) or not 1 <= values[name] <= most:
                raise NotPlain(f"has {name} {shown(values[name])}, expected 1 to {most}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def threads_of(self, world: World, share: int | None = None) -> int:
        """CPU threads of one rank: one process with all cores was tuned, so where several share them, at most a share.

        Args:
            world: the processes.
            share: of this rank; None: an equal one.
        """
        return self.threads if world.size == 1 else min(self.threads, share or default_threads(world))

    def __str__(self) -> str:
        pixels = "" if self.decode == "auto" else f", decode {self.decode}"
        threads, batches = _count(self.threads, "thread"), _count(self.prefetch, "batch", "batches")
        return f"{threads}, {_count(self.chunk, 'image')} a call, {batches} ahead{pixels}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def machine_key(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """What settings are good for: this machine, the device, and the work that an image of the recipe is."""
    on_gpu = device.type == "cuda"
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else "",
        "train_size": list(recipe.train_size),
        "aa": recipe.aa,
        "aug_repeats": recipe.aug_repeats,
        "aug_repeats_mode": recipe.aug_repeats_mode,
    }


def file_of(key: dict[str, Any]) -> Path:
    """Where the settings for a key are kept."""
    text = json.dumps(key, sort_keys=True).encode()
    return default_folder() / "tuned" / f"{hashlib.blake2b(text, digest_size=8).hexdigest()}.json"


def keep(settings: LoaderSettings, key: dict[str, Any], measured: dict[str, Any]) -> Path:
    """Write settings, with what they were measured at, in place of those before; the file."""
    record = {"key": key, "settings": settings.to_dict(), "measured": measured}
    path = file_of(key)
    write_text(path, json.dumps(record, indent=1) + "\n")
    return path


def find(recipe: Recipe, device: torch.device) -> LoaderSettings:
    """The settings kept for this machine, device and recipe.

    Raises:
        RsbdaliError: there are none, or their file is damaged.
    """
    key = machine_key(recipe, device)
    path = file_of(key)
    if not path.exists():
        size = " × ".join(map(str, recipe.train_size))
        raise RsbdaliError(
            f"nothing is tuned here for {recipe.name} at {size} px on {key['cores']} cores ({device.type}): "
            f"run `rsbdali tune --recipe {recipe.name} --data DATA` on this machine first"
        )
    try:
        record = parse_json(read_text(path))
        return LoaderSettings.of(record.get("settings") if isinstance(record, dict) else None)
    except NotPlain as error:
        raise RsbdaliError(f"{path} {error}: run `rsbdali tune` again") from error
