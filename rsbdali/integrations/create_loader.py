"""`create_loader`: a drop-in for `timm.data.create_loader`, for a trainer that already exists.

The data becomes an `ImageIndex` (`loader_data`), timm's arguments a `Recipe` (`loader_arguments`); a `TrainLoader` or
`EvalLoader` is made of the two, and a `TupleLoader` gives its batches as pairs.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rsbdali.data.index import ImageIndex
from rsbdali.distributed.devices import as_current, find_device, find_world, meeting
from rsbdali.distributed.world import World
from rsbdali.errors import DataError, RecipeError
from rsbdali.integrations.datasets import open_index
from rsbdali.integrations.timm_arguments import TIMM_DEFAULTS, refuse, with_arguments
from rsbdali.integrations.tuple_loader import TupleLoader
from rsbdali.loader.eval import EvalLoader
from rsbdali.loader.train import TrainLoader
from rsbdali.plan.randaugment import RandAugmentPolicy
from rsbdali.plan.sampler import rows_per_epoch
from rsbdali.recipe import Recipe

DEFAULT_EVAL_ROWS = 256
OUTPUTS = ("float", "uint8")


def create_loader(
    dataset: Any,
    input_size: int | Sequence[int] | None = None,
    batch_size: int | None = None,
    is_training: bool = False,
    *,
    recipe: str | Recipe | None = None,
    scale: Sequence[float] | None = None,
    ratio: Sequence[float] | None = None,
    hflip: float | None = None,
    auto_augment: str | None = None,
    num_aug_repeats: float | None = None,
    interpolation: str | None = None,
    crop_pct: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    collate_fn: Callable[..., Any] | None = None,
    num_classes: int | None = None,
    num_workers: int | None = None,
    distributed: bool | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    device: str | torch.device = "auto",
    img_dtype: torch.dtype | None = None,
    channels_last: bool = True,
    use_prefetcher: bool = True,
    output: str = "float",
    pad_eval: bool = True,
    seed: int | None = None,
    executor: str = "auto",
    prefetch: int = 2,
    max_bad_images: int | None = None,
    on_bad: Callable[[str, str], None] | None = None,
    **others: Any,
) -> TupleLoader:
    """A loader of `(images, targets)`, with the argument names of `timm.data.create_loader` (`docs/LOADER.md` has all).

    Images are (N, 3, H, W), channels_last, normalized, on the device. Targets are int64 (N,), or float32 (N, C) where
    images are mixed: by a recipe that mixes, or by timm's `FastCollateMixup` as `collate_fn`.

    Args:
        dataset: folder, `ImageIndex`, `timm.data.ImageDataset` or torchvision `ImageFolder` (`loader_data.open_index`).
        input_size: S, (H, W) or (3, H, W) in pixels. None: the recipe's, for training or for testing.
        batch_size: rows a batch of this rank, with one λ for each batch, as in timm. None with a recipe: its mix groups
            in training, 256 in evaluation.
        is_training: training batches; else evaluation, in order.
        recipe: name, path or `Recipe` to take everything from that is not given here. None: timm's defaults, except
            that color jitter is off.
        scale: bounds of the crop's share of the area.
        ratio: bounds of the crop's width / height.
        hflip: probability.
        auto_augment: timm's RandAugment string, or 'none'.
        num_aug_repeats: augmentations of an image in an epoch; without torchrun as well.
        interpolation: random (training), bilinear or bicubic.
        crop_pct: share that the center crop leaves, in evaluation.
        mean: of the channels, as a share of 255.
        std: likewise.
        collate_fn: None, timm's `fast_collate`, or its `FastCollateMixup`, whose settings are taken over.
        num_classes: width of soft targets; None: the collate function's, else the number of classes in the data.
        num_workers: CPU threads (not processes); None: all cores of this rank's share.
        distributed: False: this process alone, whatever the environment says. None: by process group or environment.
        rank: this process; None: from the process group, else torchrun's environment.
        world_size: number of processes, with `rank`.
        device: auto (this rank's GPU, or the CPU), cpu, cuda (torch's current one), cuda:N.
        img_dtype: of the images; None: float32.
        channels_last: False makes images contiguous as (N, 3, H, W).
        use_prefetcher: False: on the CPU, unmixed, float32, as without timm's prefetcher.
        output: 'uint8' leaves images as they are: neither mixed nor normalized.
        pad_eval: give ranks equal numbers of images, so that a few come twice, as in timm. False: each exactly once; a
            rank whose images run out yields an empty batch.
        seed: of all draws, the same on all ranks; None: the recipe's, 0 without one.
        executor: auto, graph or host.
        prefetch: batches in flight.
        max_bad_images: more training images that do not decode are a `DataError`.
        on_bad: called once for each image that does not decode, with path and reason; by default a warning is logged.
        **others: timm's other arguments, with values that change nothing here.

    Raises:
        RecipeError: an argument that cannot be honored, by its name.
        DataError: the data is missing or not what it has to be.
        DeviceError: there is no such device.
    """
    timm_names = {
        "input_size": input_size,
        "scale": scale,
        "ratio": ratio,
        "hflip": hflip,
        "auto_augment": auto_augment,
        "num_aug_repeats": num_aug_repeats,
        "interpolation": interpolation,
        "crop_pct": crop_pct,
        "mean": mean,
        "std": std,
    }
    settings = _recipe(recipe, timm_names, is_training)
    randaugment = RandAugmentPolicy.parse(settings.aa) is not None
    refuse(others, is_training=is_training, randaugment=randaugment, honored=create_loader.__annotations__)
    settings, mix = _mixed(settings, _mix_of(collate_fn, is_training), num_classes)
    if seed is not None:
        settings = settings.with_overrides({"seed": seed})
    if is_training and _is_mixing(settings) and not (use_prefetcher and output == "float"):
        raise RecipeError(f"{_unmixed(use_prefetcher)} mixes nothing: set the recipe's mixup and cutmix to 0")
    dtype = _dtype(output, img_dtype, use_prefetcher)
    world = find_world(distributed, rank, world_size)
    place = find_device(device if use_prefetcher else "cpu", world)
    with as_current(place):
        index = open_index(dataset, is_training=is_training, world=meeting(world))
    common: dict[str, Any] = {
        "rank": world.rank,
        "world_size": world.size,
        "device": place,
        "num_threads": _threads(num_workers),
        "dtype": dtype,
        "prefetch": prefetch,
        "on_bad": on_bad,
    }
    given = None if isinstance(dataset, str | os.PathLike) else dataset
    if not is_training:
        rows = _rows(batch_size, recipe) or DEFAULT_EVAL_ROWS
        evaluation = EvalLoader(index, settings, batch_size=rows, pad=pad_eval, **common)
        return TupleLoader(evaluation, channels_last=channels_last, dataset=given)
    settings = _per_rank(settings, _rows(batch_size, recipe), world, index)
    training = TrainLoader(index, settings, executor=executor, max_bad_images=max_bad_images, **common)
    training.mixup_enabled &= mix.enabled
    return TupleLoader(
        training,
        num_classes=_soft_classes(settings, mix, index),
        smoothing=settings.smoothing,
        channels_last=channels_last,
        dataset=given,
    )


@dataclass(frozen=True)
class _Mix:
    """What a collate function says of mixing: recipe keys, classes C or None, whether it is on."""

    overrides: dict[str, Any]
    num_classes: int | None = None
    enabled: bool = True


def _recipe(recipe: str | Recipe | None, timm_names: dict[str, Any], is_training: bool) -> Recipe:
    if recipe is None and timm_names["input_size"] is None:
        raise RecipeError("input_size is missing: give the size in pixels, or a recipe")
    base = Recipe.load(recipe) if isinstance(recipe, str) else recipe or Recipe.from_dict(TIMM_DEFAULTS)
    return with_arguments(base, timm_names, is_training=is_training)


def _mix_of(collate_fn: Callable[..., Any] | None, is_training: bool) -> _Mix:
    """The settings of timm's `FastCollateMixup` as recipe keys."""
    if collate_fn is None:
        return _Mix({})
    from timm.data import FastCollateMixup
    from timm.data.loader import fast_collate
    from torch.utils.data import default_collate

    if collate_fn in (fast_collate, default_collate):
        return _Mix({})
    if not isinstance(collate_fn, FastCollateMixup):
        name = getattr(collate_fn, "__name__", type(collate_fn).__name__)
        raise RecipeError(f"collate_fn={name} cannot be honored: only timm's FastCollateMixup is translated")
    if not is_training:
        raise RecipeError("collate_fn=FastCollateMixup cannot be honored in evaluation: nothing is mixed there")
    for name, plain in (("cutmix_minmax", None), ("correct_lam", True), ("multi_label", False)):
        if getattr(collate_fn, name) != plain:
            value = getattr(collate_fn, name)
            raise RecipeError(f"FastCollateMixup's {name}={value!r} cannot be honored: only {plain!r} is")
    overrides = {
        "mixup": collate_fn.mixup_alpha,
        "cutmix": collate_fn.cutmix_alpha,
        "mixup_prob": collate_fn.mix_prob,
        "mixup_switch_prob": collate_fn.switch_prob,
        "mixup_mode": collate_fn.mode,
        "smoothing": collate_fn.label_smoothing,
        "mixup_off_epoch": 0,
    }
    return _Mix(overrides, collate_fn.num_classes, collate_fn.mixup_enabled)


def _mixed(recipe: Recipe, mix: _Mix, num_classes: int | None) -> tuple[Recipe, _Mix]:
    if num_classes is not None:
        mix = _Mix(mix.overrides, num_classes, mix.enabled)
    return recipe.with_overrides(mix.overrides), mix


def _is_mixing(recipe: Recipe) -> bool:
    return recipe.mixup > 0 or recipe.cutmix > 0


def _soft_classes(recipe: Recipe, mix: _Mix, index: ImageIndex) -> int | None:
    """Width of the targets, None for hard ones."""
    if not _is_mixing(recipe):
        return None
    if mix.num_classes is not None and mix.num_classes < index.num_classes:
        raise DataError(f"num_classes={mix.num_classes}: {index.name} has {index.num_classes} classes")
    return mix.num_classes or index.num_classes


def _unmixed(use_prefetcher: bool) -> str:
    return "output='uint8'" if use_prefetcher else "use_prefetcher=False"


def _dtype(output: str, img_dtype: torch.dtype | None, use_prefetcher: bool) -> torch.dtype:
    if output not in OUTPUTS:
        raise RecipeError(f"output={output!r}: use one of {', '.join(OUTPUTS)}")
    if output == "uint8":
        return torch.uint8
    if img_dtype is not None and not (isinstance(img_dtype, torch.dtype) and img_dtype.is_floating_point):
        raise RecipeError(f"img_dtype={img_dtype!r}: expected a float type of torch (output='uint8' gives the pixels)")
    # timm converts in the prefetcher, so without it images are float32 whatever img_dtype says
    return torch.float32 if img_dtype is None or not use_prefetcher else img_dtype


def _threads(num_workers: int | None) -> int | None:
    return None if num_workers is None else max(1, num_workers)


def _rows(batch_size: int | None, recipe: str | Recipe | None) -> int | None:
    if batch_size is None and recipe is None:
        raise RecipeError("batch_size is missing: give the rows of a batch, or a recipe")
    if batch_size is not None and batch_size < 1:
        raise RecipeError(f"batch_size={batch_size}: expected at least 1")
    return batch_size


def _per_rank(recipe: Recipe, rows: int | None, world: World, index: ImageIndex) -> Recipe:
    """`rows` for each rank with a λ of its own; without them the recipe's own global batch."""
    if rows is None:
        _check_equal_shares(recipe.mix_groups, world.size)
        return recipe
    available = rows_per_epoch(len(index), max(1, recipe.aug_repeats))
    if rows * world.size > available:
        raise DataError(f"batch_size={rows} on {world.size} ranks is more than an epoch of {available} images")
    return recipe.with_overrides({"global_batch_size": rows * world.size, "mix_groups": world.size})


def _check_equal_shares(groups: int, ranks: int) -> None:
    """Refuse unequal numbers of batches on the ranks, with which the trainers of other people would wait forever."""
    if groups > ranks and groups % ranks:
        allowed = ", ".join(str(number) for number in range(1, groups + 1) if groups % number == 0)
        raise RecipeError(
            f"mix_groups={groups} on {ranks} processes: create_loader (also of timm's scripts, Lightning, Accelerate) "
            f"gives each of them as many batches, which takes {allowed} processes, batch_size, or other "
            "mix_groups; `rsbdali train` and TrainLoader go with any number"
        )
