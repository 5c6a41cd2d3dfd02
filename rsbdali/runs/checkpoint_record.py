"""What rsbdali writes into a checkpoint beside timm's keys, and its reading: checked, since anybody may write one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsbdali.bounded import MOST_SCALAR, is_count, is_number, shown
from rsbdali.errors import CheckpointError, counted
from rsbdali.runs.folder import is_epoch_file

OURS = "rsbdali"
MOST_ENTRIES = 1000
# what checkpoints of earlier versions lack
EARLIER: Mapping[str, Any] = {
    "data": {"images": 0, "digest": ""},
    "pixels": "",
    "decode": "",
    "hw_decoder_load": None,
    "tuned": {},
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """The position of a run, and its settings.

    Attributes:
        recipe: plain values, as `Recipe.to_dict` gives them (another version of rsbdali may have written them).
        versions: of rsbdali, torch, timm and Python.
        epoch: that goes on or begins, from 0.
        step: steps of it that are done.
        class_names: in the order of the model's outputs.
        mix_groups: effective number of mix groups G.
        steps_per_epoch: optimizer steps.
        updates: optimizer steps since the run began.
        loss_sum: sum of the finite losses of the epoch's steps so far.
        loss_steps: how many they are.
        seconds: the run took so far.
        best_top1: best evaluation so far, per cent.
        best_epoch: its epoch.
        history: name of a `checkpoint-<epoch>.pth.tar` → top-1.
        images: number of training images; 0 in checkpoints of earlier versions.
        digest: of their paths, labels and sizes; empty likewise.
        pixels: what made them of the files; empty likewise.
        decode: where they were decoded, see `loader.decode_mode`; empty likewise.
        hw_decoder_load: share of the JPEGs that went to the GPU's JPEG engine; None: DALI's own.
        tuned: the loader's settings, where they were tuned.
    """

    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    epoch: int
    step: int
    class_names: tuple[str, ...]
    mix_groups: int
    steps_per_epoch: int
    updates: int
    loss_sum: float
    loss_steps: int
    seconds: float
    best_top1: float | None
    best_epoch: int | None
    history: Mapping[str, float]
    images: int = 0
    digest: str = ""
    pixels: str = ""
    decode: str = ""
    hw_decoder_load: float | None = None
    tuned: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for the file."""
        return {
            "recipe": dict(self.recipe),
            "versions": dict(self.versions),
            "position": {"epoch": self.epoch, "step": self.step},
            "class_names": list(self.class_names),
            "mix_groups": self.mix_groups,
            "steps_per_epoch": self.steps_per_epoch,
            "updates": self.updates,
            "loss_sum": self.loss_sum,
            "loss_steps": self.loss_steps,
            "seconds": self.seconds,
            "best": {"top1": self.best_top1, "epoch": self.best_epoch},
            "history": dict(self.history),
            "data": {"images": self.images, "digest": self.digest},
            "pixels": self.pixels,
            "decode": self.decode,
            "hw_decoder_load": self.hw_decoder_load,
            "tuned": dict(self.tuned),
        }


def read_record(content: Mapping[str, Any], path: Path | str) -> Record | None:
    """The record in a checkpoint, None in one of another program.

    Raises:
        CheckpointError: an entry is missing, or is not what it has to be.
    """
    if OURS not in content:
        return None
    ours = content[OURS]
    if not isinstance(ours, Mapping):
        raise CheckpointError(f"{path} is damaged: its `{OURS}` is no record of a run")
    top = _Entries({**EARLIER, **ours}, path)
    data = _Entries(top.get("data", _is_mapping, "entries"), path, "data.")
    position, best = (_Entries(top.get(key, _is_mapping, "entries"), path, f"{key}.") for key in ("position", "best"))
    record = Record(
        recipe=dict(top.get("recipe", _is_plain_mapping, "settings")),
        versions=dict(top.get("versions", _is_texts_by_text, "texts")),
        epoch=position.count("epoch"),
        step=position.count("step"),
        class_names=tuple(top.get("class_names", _is_texts, "a list of names")),
        mix_groups=top.count("mix_groups"),
        steps_per_epoch=top.count("steps_per_epoch"),
        updates=top.count("updates"),
        loss_sum=top.get("loss_sum", is_number, "a number"),
        loss_steps=top.count("loss_steps"),
        seconds=top.get("seconds", is_number, "a number"),
        best_top1=best.get("top1", _or_none(is_number), "a number or none"),
        best_epoch=best.get("epoch", _or_none(is_count), "a number or none"),
        history=dict(top.get("history", _is_history, "names of checkpoints of the run and numbers")),
        images=data.count("images"),
        digest=data.get("digest", _is_text, "a text"),
        pixels=top.get("pixels", _is_text, "a text"),
        decode=top.get("decode", _is_text, "a text"),
        hw_decoder_load=top.get("hw_decoder_load", _or_none(is_number), "a number or none"),
        tuned=dict(top.get("tuned", _is_plain_mapping, "settings")),
    )
    if record.step > record.steps_per_epoch:
        raise CheckpointError(
            f"{path} is damaged: step {record.step} of an epoch of {counted(record.steps_per_epoch, 'step')}"
        )
    return record


@dataclass(frozen=True)
class _Entries:
    """Entries of a mapping, each taken with a check that names the wrong one."""

    entries: Mapping[Any, Any]
    path: Path | str
    prefix: str = ""

    def get(self, key: str, fits: Callable[[Any], bool], expected: str) -> Any:
        if key not in self.entries:
            raise CheckpointError(f"{self.path} is damaged: it holds no {OURS}.{self.prefix}{key}")
        value = self.entries[key]
        if not fits(value):
            raise CheckpointError(
                f"{self.path} is damaged: {OURS}.{self.prefix}{key} is {shown(value)}, expected {expected}"
            )
        return value

    def count(self, key: str) -> int:
        found: int = self.get(key, is_count, "a whole number")
        return found


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MOST_SCALAR


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_text, value))


def _is_texts_by_text(value: Any) -> bool:
    return _is_mapping(value) and all(map(_is_text, (*value.keys(), *value.values())))


def _is_plain(value: Any, depth: int = 2) -> bool:
    if value is None or isinstance(value, bool) or is_number(value) or _is_text(value):
        return True
    if isinstance(value, Mapping):
        return depth > 0 and _is_plain_mapping(value, depth)
    return isinstance(value, list | tuple) and depth > 0 and len(value) <= MOST_ENTRIES and _all_plain(value, depth)


def _is_plain_mapping(value: Any, depth: int = 3) -> bool:
    return (
        _is_mapping(value)
        and len(value) <= MOST_ENTRIES
        and all(map(_is_text, value))
        and _all_plain(value.values(), depth)
    )


def _all_plain(values: Any, depth: int) -> bool:
    return all(_is_plain(value, depth - 1) for value in values)


def _is_history(value: Any) -> bool:
    """Names of the run's own files alone: what falls out of the best is deleted by its name."""
    return _is_mapping(value) and all(
        isinstance(name, str) and is_epoch_file(name) and is_number(metric) for name, metric in value.items()
    )
