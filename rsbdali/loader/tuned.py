"""The settings of a loader that `rsbdali tune` found best on this machine: kept in the cache folder, found again.

One JSON file for each machine, device and size of a recipe's images: a home folder may be many machines'. Settings
do not change a batch, but for `decode` and `hw_decoder_load`, which are the defaults unless the user let pixels change.
"""

import hashlib
import json
import os
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from rsbdali.atomic import write_text
from rsbdali.bounded import NotPlain, is_count, is_number, parse_json, read_text, shown
from rsbdali.data.cache import default_folder
from rsbdali.distributed.devices import default_threads
from rsbdali.distributed.world import World
from rsbdali.environment import cpu_model
from rsbdali.errors import RsbdaliError, counted
from rsbdali.recipe import Recipe, recipe_names

DEFAULT_PREFETCH = 2
KEYS = ("aa", "aug_repeats", "aug_repeats_mode")  # of a recipe, which the work on an image depends on besides its size
MOST = {"threads": 4096, "chunk": 31, "prefetch": 64}
EARLIER = {"hw_decoder_load": None}  # what earlier versions did not tune


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """What can be tuned of a training loader.

    Attributes:
        threads: CPU threads.
        chunk: most images that decode=cpu gives DALI at a time.
        prefetch: batches in flight.
        decode: where images are decoded (`loader.decode_mode`); "auto" leaves that as it is.
        hw_decoder_load: share of a batch's JPEGs for the GPU's JPEG engine, for that `decode`; None: DALI's own.
    """

    threads: int
    chunk: int
    prefetch: int
    decode: str = "auto"
    hw_decoder_load: float | None = None

    @classmethod
    def of(cls, values: Any) -> "LoaderSettings":
        """From plain values that may have been changed by hand.

        Raises:
            NotPlain: they are no settings.
        """
        names = {field.name for field in fields(cls)}
        values = {**EARLIER, **values} if isinstance(values, dict) else {}
        if values.keys() != names or not isinstance(values["decode"], str):
            raise NotPlain(f"holds no settings of a loader: {shown(values)}")
        if not _is_load(values["hw_decoder_load"]):
            raise NotPlain(f"has hw_decoder_load {shown(values['hw_decoder_load'])}, expected 0 to 1 or none")
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

    def load_for(self, decode: str, load: float | None) -> float | None:
        """The JPEG engine's share for a decode mode: the one given, else the tuned one, where that mode was tuned."""
        return self.hw_decoder_load if load is None and decode == self.decode else load

    def __str__(self) -> str:
        pixels = "" if self.decode == "auto" else f", decode {self.decode}"
        pixels += "" if self.hw_decoder_load is None else f", hw_decoder_load {self.hw_decoder_load:g}"
        threads, batches = counted(self.threads, "thread"), counted(self.prefetch, "batch", "batches")
        return f"{threads}, {counted(self.chunk, 'image')} a call, {batches} ahead{pixels}"


def _is_load(value: Any) -> bool:
    return value is None or (is_number(value) and 0 <= value <= 1)


def machine_key(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """What settings are good for: this machine, the device, and the work that an image of the recipe is."""
    on_gpu = device.type == "cuda"
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else "",
        "train_size": list(recipe.train_size),
        **{key: getattr(recipe, key) for key in KEYS},
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


def _text(value: Any) -> str:
    """A recipe's value as `--set` takes it."""
    return "none" if value is None else f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def _differing(recipe: Recipe) -> str:
    """The keys of a machine's settings that are not as in the recipe of that name, as options."""
    if recipe.name not in recipe_names():
        return ""
    named = Recipe.load(recipe.name)
    keys = [key for key in ("img_size", *KEYS) if getattr(recipe, key) != getattr(named, key)]
    return "".join(f" --set {shlex.quote(f'{key}={_text(getattr(recipe, key))}')}" for key in keys)


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
            f"nothing is tuned here for {recipe.name} at {size} px on {counted(key['cores'], 'core')} ({device.type}): "
            f"run `rsbdali tune --recipe {recipe.name}{_differing(recipe)} --data DATA` on this machine first"
        )
    try:
        record = parse_json(read_text(path))
        return LoaderSettings.of(record.get("settings") if isinstance(record, dict) else None)
    except NotPlain as error:
        raise RsbdaliError(f"{path} {error}: run `rsbdali tune` again") from error
