"""Recipe: one training run's settings, typed and frozen, under the names that timm's train.py gave them.

`Recipe.load("a3")` reads a recipe of the package, `Recipe.load("my.yaml")` a file. Unknown keys, wrong types and values
out of range are refused in one line.
"""

import dataclasses
import functools
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from rsbdali import bounded
from rsbdali.bounded import NotPlain, shown
from rsbdali.errors import RecipeError, nearest
from rsbdali.lr_scaling import AUTO, distance, scaled

PACKAGE = "rsbdali.recipes"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
OF_255 = " (a share of 255: divide by 255 what counts from 0 to 255)"


class OnResume(Enum):
    """What becomes of another value of a key when a run is resumed with it (`rsbdali.runs.resume_rules`)."""

    AT_ONCE = "acts at once"
    NEXT_EPOCH = "acts from the next epoch"
    REFUSED = "refused on resume"


AT_ONCE, NEXT_EPOCH, REFUSED = OnResume


def _key(on_resume: OnResume, low: float | None = None, high: float | None = None, *, hint: str = "") -> dict[str, Any]:
    """Metadata of a key: what a resume makes of another value, the bounds of a number, what to add to them."""
    return {"on_resume": on_resume, "low": low, "high": high, "hint": hint}


def check_name(what: str, name: str, *, parts: bool = False) -> None:
    """Refuse a name that cannot be that of a folder: what names a run's files must not lead out of theirs.

    Args:
        what: it names, for the message.
        name: letters, digits, and . _ - among them.
        parts: whether it may have several, with / between them.

    Raises:
        RecipeError: it is none.
    """
    for part in name.split("/") if parts else [name]:
        if not re.fullmatch(r"[\w.-]{1,100}", part) or not part.strip("."):
            raise RecipeError(
                f"{what} {shown(name)} is no name: letters, digits, '.', '_' and '-'{', parts with / between' * parts}"
            )


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What the paper reports for a recipe: the budget that a run is measured against.

    Attributes:
        top1: ImageNet top-1 in per cent.
        hours: wall-clock hours of the whole run.
        hardware: on what.
    """

    top1: float | None = None
    hours: float | None = None
    hardware: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of one run. Names are timm's where timm has them.

    Sizes are pixels, either one number (square) or (height, width). `global_batch_size` counts rows over all ranks and
    accumulation steps; `micro_batch_size` caps the rows of one forward pass on one GPU (none: a whole mix group). Every
    key declares what becomes of another value when a run is resumed with it (`OnResume`).
    """

    name: str = field(default="custom", metadata=_key(AT_ONCE))
    # model
    model: str = field(default="resnet50", metadata=_key(REFUSED))
    drop: float = field(default=0.0, metadata=_key(AT_ONCE, 0, 0.999))
    drop_path: float = field(default=0.0, metadata=_key(AT_ONCE, 0, 0.999))
    zero_init_last: bool = field(default=True, metadata=_key(REFUSED))
    # sizes
    img_size: int | tuple[int, int] = field(default=224, metadata=_key(AT_ONCE, 1, 8192))
    test_img_size: int | tuple[int, int] = field(default=224, metadata=_key(AT_ONCE, 1, 8192))
    crop_pct: float = field(default=0.95, metadata=_key(AT_ONCE, 0.01, 1.0))
    crop_mode: Literal["center", "squash", "border"] = field(default="center", metadata=_key(AT_ONCE))
    mean: tuple[float, float, float] = field(default=IMAGENET_MEAN, metadata=_key(AT_ONCE, 0, 1, hint=OF_255))
    std: tuple[float, float, float] = field(default=IMAGENET_STD, metadata=_key(AT_ONCE, 1e-6, 1, hint=OF_255))
    # length and batch
    epochs: int = field(default=100, metadata=_key(AT_ONCE, 1))
    global_batch_size: int = field(default=2048, metadata=_key(NEXT_EPOCH, 1))
    micro_batch_size: int | None = field(default=None, metadata=_key(AT_ONCE, 1))
    # optimizer and schedule
    opt: str = field(default="lamb", metadata=_key(REFUSED))
    lr: float = field(default=5e-3, metadata=_key(AT_ONCE, 0))
    min_lr: float = field(default=1e-6, metadata=_key(AT_ONCE, 0))
    weight_decay: float = field(default=0.01, metadata=_key(AT_ONCE, 0))
    warmup_epochs: int = field(default=5, metadata=_key(AT_ONCE, 0))
    warmup_lr: float = field(default=1e-4, metadata=_key(AT_ONCE, 0))
    clip_grad: float | None = field(default=None, metadata=_key(AT_ONCE, 0))
    # loss
    smoothing: float = field(default=0.0, metadata=_key(AT_ONCE, 0, 0.999))
    bce_loss: bool = field(default=True, metadata=_key(AT_ONCE))
    bce_target_thresh: float | None = field(default=None, metadata=_key(AT_ONCE, 0, 1))
    # augmentation
    scale: tuple[float, float] = field(default=(0.08, 1.0), metadata=_key(AT_ONCE, 1e-6, 1))
    ratio: tuple[float, float] = field(default=(3 / 4, 4 / 3), metadata=_key(AT_ONCE, 1e-3, 1e3))
    train_crop_mode: Literal["rrc", "rkrc"] = field(default="rrc", metadata=_key(AT_ONCE))
    hflip: float = field(default=0.5, metadata=_key(AT_ONCE, 0, 1))
    vflip: float = field(default=0.0, metadata=_key(AT_ONCE, 0, 1))
    train_interpolation: Literal["random", "bilinear", "bicubic"] = field(default="random", metadata=_key(AT_ONCE))
    interpolation: Literal["bilinear", "bicubic"] = field(default="bicubic", metadata=_key(AT_ONCE))
    aa: str | None = field(default=None, metadata=_key(AT_ONCE))
    color_jitter: float | tuple[float, float, float] | tuple[float, float, float, float] | None = field(
        default=None, metadata=_key(AT_ONCE, 0, 100)
    )
    color_jitter_prob: float | None = field(default=None, metadata=_key(AT_ONCE, 0, 1))
    grayscale_prob: float = field(default=0.0, metadata=_key(AT_ONCE, 0, 1))
    gaussian_blur_prob: float = field(default=0.0, metadata=_key(AT_ONCE, 0, 1))
    aug_repeats: int = field(default=0, metadata=_key(NEXT_EPOCH, 0, 64))
    aug_repeats_mode: Literal["across_ranks", "decode_once"] = field(default="across_ranks", metadata=_key(NEXT_EPOCH))
    reprob: float = field(default=0.0, metadata=_key(AT_ONCE, 0, 1))
    remode: Literal["const", "rand", "pixel"] = field(default="pixel", metadata=_key(AT_ONCE))
    recount: int = field(default=1, metadata=_key(AT_ONCE, 1, 100))
    # mixing
    mixup: float = field(default=0.0, metadata=_key(AT_ONCE, 0))
    cutmix: float = field(default=0.0, metadata=_key(AT_ONCE, 0))
    mixup_prob: float = field(default=1.0, metadata=_key(AT_ONCE, 0, 1))
    mixup_switch_prob: float = field(default=0.5, metadata=_key(AT_ONCE, 0, 1))
    mixup_mode: Literal["batch", "pair", "elem"] = field(default="batch", metadata=_key(AT_ONCE))
    mixup_off_epoch: int = field(default=0, metadata=_key(AT_ONCE, 0))
    mix_groups: int = field(default=4, metadata=_key(REFUSED, 1))
    # running
    seed: int = field(default=0, metadata=_key(NEXT_EPOCH, 0, 2**31 - 1))
    amp_dtype: Literal["auto", "float16", "bfloat16", "float32"] = field(default="auto", metadata=_key(AT_ONCE))
    dist_bn: Literal["reduce", "broadcast", "none"] = field(default="reduce", metadata=_key(AT_ONCE))
    model_ema: bool = field(default=False, metadata=_key(AT_ONCE))
    model_ema_decay: float = field(default=0.9998, metadata=_key(AT_ONCE, 0, 1))
    eval_every: int = field(default=1, metadata=_key(AT_ONCE, 1))
    checkpoint_hist: int = field(default=10, metadata=_key(AT_ONCE, 1))
    log_interval: int = field(default=50, metadata=_key(AT_ONCE, 1))
    reported: Reported = field(default=Reported(), metadata=_key(AT_ONCE))

    def __post_init__(self) -> None:
        check_name("name:", self.name)
        for f in dataclasses.fields(self):
            _check_range(f, getattr(self, f.name))
        if self.scale[0] > self.scale[1] or self.ratio[0] > self.ratio[1]:
            raise RecipeError("scale and ratio are (low, high) bounds, low first")
        if isinstance(self.color_jitter, tuple) and len(self.color_jitter) == 4 and self.color_jitter[3] > 0.5:
            raise RecipeError(f"color_jitter={list(self.color_jitter)}: the fourth, of the hue, is at most 0.5")
        if not self.bce_loss and self.bce_target_thresh is not None:
            raise RecipeError("bce_target_thresh needs bce_loss=true")

    @property
    def train_size(self) -> tuple[int, int]:
        """Height and width of the training images."""
        return _pair(self.img_size)

    @property
    def test_size(self) -> tuple[int, int]:
        """Height and width of the evaluation images."""
        return _pair(self.test_img_size)

    @classmethod
    def load(cls, name_or_path: str, overrides: Mapping[str, Any] | None = None) -> "Recipe":
        """Read a recipe of the package by name, or a YAML file by path, and apply overrides.

        Args:
            name_or_path: `a1`, `a2`, `a3`, …, or a path that ends in .yaml or .yml.
            overrides: values by key; a string is read as YAML (`"64"` is a number). `lr: auto` scales the recipe's own
                rate to the batch (`lr_scaling.py`); in a file, the default rate at the default batch.

        Raises:
            RecipeError: no such recipe, an unknown key, a wrong type or a value out of range; `lr: auto` for another
                optimizer than the rate's.
        """
        values = _read(name_or_path)
        changed = {key: _yaml_value(key, value) for key, value in (overrides or {}).items()}
        return cls._with_rate({**values, **changed}, values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Build a recipe from plain values, as `to_dict` gives them or a YAML file holds them."""
        return _build(cls, values)

    def with_overrides(self, overrides: Mapping[str, Any]) -> "Recipe":
        """This recipe with some keys set otherwise; strings are read as YAML, as in `load`."""
        values = self.to_dict()
        return self._with_rate({**values, **{key: _yaml_value(key, value) for key, value in overrides.items()}}, values)

    @classmethod
    def _with_rate(cls, values: Mapping[str, Any], reference: Mapping[str, Any]) -> "Recipe":
        """`from_dict`, with a number for `lr: auto`: scaled from the rate, batch and optimizer of `reference`."""
        if values.get("lr") != AUTO:
            return cls.from_dict(values)
        then = cls() if reference.get("lr") == AUTO else cls.from_dict(reference)
        now = cls.from_dict({**values, "lr": then.lr})
        if now.opt.lower() != then.opt.lower():
            raise RecipeError(
                f"lr=auto scales a rate of {then.opt} ({then.lr:g} at a batch of {then.global_batch_size}), which says "
                f"nothing of opt={now.opt}: give lr as a number"
            )
        return dataclasses.replace(now, lr=scaled(then.lr, now.opt, now.global_batch_size, then.global_batch_size))

    @property
    def is_reported(self) -> bool:
        """Whether `reported` is about this model, at this size, for these epochs, and not about a changed recipe."""
        shipped = _shipped(self.name)
        if shipped is None:
            return False
        return all(getattr(self, name) == getattr(shipped, name) for name in ("model", "epochs", "img_size"))

    @property
    def rate_advice(self) -> str:
        """What to say where the rate is far from the one that goes with the batch; nothing where it is not.

        Known is that of a recipe of the package, by this one's name, for its own optimizer.
        """
        shipped = _shipped(self.name)
        if shipped is None or self.opt.lower() != shipped.opt.lower():
            return ""
        fitting = scaled(shipped.lr, self.opt, self.global_batch_size, shipped.global_batch_size)
        far = distance(self.lr, fitting)
        return far and (
            f"lr={self.lr:g} is {far} the rate that goes with a batch of {self.global_batch_size}, {fitting:.3g} "
            f"({shipped.name}'s {shipped.lr:g} at {shipped.global_batch_size}, scaled by timm's rule): lr=auto takes it"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values (lists for tuples) that `from_dict` takes back."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def recipe_names() -> list[str]:
    """Names of the recipes that the package ships (the demo is no recipe: see `demo_overrides`)."""
    files = (f.name for f in resources.files(PACKAGE).iterdir())
    return sorted(f.removesuffix(".yaml") for f in files if f.endswith(".yaml") and f != "demo.yaml")


@functools.cache
def _shipped(name: str) -> Recipe | None:
    """The package's recipe of that name, as it is there."""
    return Recipe.load(name) if name in recipe_names() else None


def demo_overrides() -> dict[str, Any]:
    """What `--demo` lays over a recipe to scale it down (`recipes/demo.yaml` says how and why)."""
    values: dict[str, Any] = bounded.parse_yaml(recipe_text("demo"))
    return values


def recipe_text(name: str) -> str:
    """The text of a shipped recipe file, header and all."""
    return (resources.files(PACKAGE) / f"{name}.yaml").read_text(encoding="utf-8")


def _read(name_or_path: str) -> dict[str, Any]:
    path = Path(name_or_path).expanduser() if name_or_path.endswith((".yaml", ".yml")) else None
    if path is not None:
        if not path.exists():
            raise RecipeError(f"no recipe file {name_or_path}")
    elif (name_or_path := name_or_path.lower()) not in recipe_names():
        hint = nearest(name_or_path, recipe_names())
        raise RecipeError(
            f"unknown recipe {name_or_path!r}{hint or ';'} known: {', '.join(recipe_names())}, or a .yaml path"
        )
    try:
        values = bounded.parse_yaml(bounded.read_text(path) if path else recipe_text(name_or_path))
    except NotPlain as error:
        raise RecipeError(f"{name_or_path} {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{name_or_path} must hold keys and values")
    return values


def _yaml_value(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return bounded.parse_yaml(value)
    except NotPlain as error:
        raise RecipeError(f"{key}={shown(value)}: not a YAML value, it {error}") from error


def _build(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            hint = nearest(key, hints) if isinstance(key, str) else ""
            raise RecipeError(f"unknown key {prefix}{shown(key)}{hint}")
    return cls(**{key: _coerce(prefix + key, value, hints[key]) for key, value in values.items()})


def _coerce(key: str, value: Any, hint: Any) -> Any:
    """`value` as the annotated type, or a RecipeError that says what is allowed."""
    for option in typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
        matched, result = _match(key, value, option)
        if matched:
            return result
    raise RecipeError(f"{key}={shown(value)}: expected {_describe(hint)}")


def _match(key: str, value: Any, option: Any) -> tuple[bool, Any]:
    origin, args = typing.get_origin(option), typing.get_args(option)
    if origin is Literal:
        return value in args, value
    if origin is tuple:
        fits = isinstance(value, list | tuple) and len(value) == len(args)
        return fits, tuple(_coerce(key, v, a) for v, a in zip(value, args, strict=True)) if fits else None
    if dataclasses.is_dataclass(option) and isinstance(option, type):
        if isinstance(value, option):
            return True, value
        return isinstance(value, dict), _build(option, value, key + ".") if isinstance(value, dict) else None
    if option is types.NoneType:
        return value is None or value == "none", None
    if option is float:
        return _match_float(value)
    return type(value) is option, value


def _match_float(value: Any) -> tuple[bool, float]:
    if isinstance(value, bool):
        return False, 0.0
    if isinstance(value, str):  # YAML 1.1 reads 5e-3 as a string
        return _match_number_text(value)
    if isinstance(value, int):
        return abs(value) < 2**63, float(value) if abs(value) < 2**63 else 0.0
    return isinstance(value, float), value if isinstance(value, float) else 0.0


def _match_number_text(text: str) -> tuple[bool, float]:
    try:
        return True, float(text)
    except ValueError:
        return False, 0.0


def _check_range(f: "dataclasses.Field[Any]", value: Any) -> None:
    low, high = f.metadata["low"], f.metadata["high"]
    if low is None or value is None:
        return
    for number in value if isinstance(value, tuple) else (value,):
        most = high if high is not None else bounded.MOST_COUNT if isinstance(number, int) else sys.float_info.max
        if not low <= number <= most:
            raise RecipeError(
                f"{f.name}={shown(value)} is out of range: {_bounds(low, high, most, number)}{f.metadata['hint']}"
            )


def _bounds(low: float, high: float | None, most: float, number: float) -> str:
    if high is None:
        return f"at most {most:g}" if number > most else f"at least {low:g}"
    return f"{low:g} to {high:g}"


def _describe(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join(_describe(h) for h in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return " or ".join(str(a) for a in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"a list of {len(typing.get_args(hint))} numbers"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "none"}
    return names.get(hint, "keys and values")


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value
