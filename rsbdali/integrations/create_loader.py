"""`create_loader`: a drop-in for `timm.data.create_loader`, for a trainer that already exists.

The data becomes an `ImageIndex` (`datasets`), timm's arguments a `Recipe` (`timm_arguments`), the order of the images a
`Sampling`; a `TrainLoader` or `EvalLoader` is made of them, and a `TupleLoader` gives its batches as pairs.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import torch

from rsbdali.data.index import ImageIndex
from rsbdali.distributed.devices import find_device, find_world, meeting
from rsbdali.distributed.world import World
from rsbdali.errors import DataError, RecipeError, counted
from rsbdali.integrations.datasets import open_index
from rsbdali.integrations.sampling import Sampler, Weights, refuse_in_evaluation, sampling_of
from rsbdali.integrations.timm_arguments import (
    RECIPE_ARGUMENTS,
    TIMM_DEFAULTS,
    OtherTimmArguments,
    refuse,
    with_arguments,
)
from rsbdali.integrations.tuple_loader import TupleLoader
from rsbdali.loader.decode_mode import DecodeMode
from rsbdali.loader.eval import EvalLoader
from rsbdali.loader.train import TrainLoader
from rsbdali.loader.transform import Transform
from rsbdali.loader.tuned import DEFAULT_PREFETCH
from rsbdali.loader.tuned import find as find_tuned
from rsbdali.plan.sampler import rows_per_epoch
from rsbdali.plan.sampling import Sampling
from rsbdali.recipe import Recipe

DEFAULT_EVAL_ROWS = 256
OUTPUTS = ("float", "uint8")

log = logging.getLogger(__name__)


def create_loader(
    dataset: Any,
    input_size: int | Sequence[int] | None = None,
    batch_size: int | None = None,
    is_training: bool = False,
    *,
    recipe: str | Recipe | None = None,
    scale: Sequence[float] | None = None,
    ratio: Sequence[float] | None = None,
    train_crop_mode: str | None = None,
    hflip: float | None = None,
    vflip: float | None = None,
    color_jitter: float | Sequence[float] | None = None,
    color_jitter_prob: float | None = None,
    grayscale_prob: float | None = None,
    gaussian_blur_prob: float | None = None,
    auto_augment: str | None = None,
    num_aug_repeats: float | None = None,
    re_prob: float | None = None,
    re_mode: Literal["const", "rand", "pixel"] | None = None,
    re_count: int | None = None,
    interpolation: Literal["random", "bilinear", "bicubic"] | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    collate_fn: Callable[..., Any] | None = None,
    num_classes: int | None = None,
    smoothing: float | None = None,
    shuffle: bool | None = None,
    drop_last: bool | None = None,
    weights: Weights | None = None,
    sampler: Sampler | None = None,
    transform: Transform | None = None,
    return_index: bool = False,
    num_workers: int | None = None,
    distributed: bool | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    device: str | torch.device = "auto",
    img_dtype: torch.dtype | None = None,
    channels_last: bool = True,
    use_prefetcher: bool = True,
    output: Literal["float", "uint8"] = "float",
    pad_eval: bool = True,
    seed: int | None = None,
    decode: DecodeMode = "auto",
    hw_decoder_load: float | None = None,
    prefetch: int | None = None,
    tuned: bool = False,
    max_bad_images: int | None = None,
    on_bad: Callable[[str, str], None] | None = None,
    **others: Unpack[OtherTimmArguments],
) -> TupleLoader:
    """A loader of `(images, targets)`, with the argument names of `timm.data.create_loader` (`docs/LOADER.md` has all).

    Images are (N, 3, H, W), channels_last, normalized, on the device. Targets are int64 (N,), or float32 (N, C) where
    images are mixed or labels smoothed: by a recipe, by timm's `FastCollateMixup` as `collate_fn`, or by `smoothing`.

    Args:
        dataset: folder or other location, `ImageIndex`, or what `ImageIndex.from_dataset` takes: lists, a `Subset`, a
            Hugging Face `Dataset`, torchvision's `ImageFolder`, timm's `ImageDataset`, an object with `read(i)`.
        input_size: S, (H, W) or (3, H, W) in pixels. None: the recipe's, for training or for testing.
        batch_size: rows a batch of this rank, with one λ for each batch, as in timm. None with a recipe: its mix groups
            in training, 256 in evaluation.
        is_training: training batches; else evaluation, in order.
        recipe: name, path or `Recipe` to take everything from that is not given here. None: timm's defaults, except
            that color jitter is off.
        scale: bounds of the crop's share of the area.
        ratio: bounds of the crop's width / height.
        train_crop_mode: rrc or rkrc.
        hflip: probability of a flip left to right.
        vflip: of one upside down.
        color_jitter: strength of brightness, contrast and saturation, or one for each, and of the hue; acts as in timm
            beside 3-Augment or without auto_augment only.
        color_jitter_prob: its probability; None: always.
        grayscale_prob: probability.
        gaussian_blur_prob: probability.
        auto_augment: timm's string for RandAugment, AutoAugment or 3-Augment; 'trivial' or 'none'.
        num_aug_repeats: augmentations of an image in an epoch; without torchrun as well.
        re_prob: probability of random erasing.
        re_mode: const, rand or pixel; const without a recipe.
        re_count: most boxes of an image.
        interpolation: random (training), bilinear or bicubic.
        crop_pct: share that the center crop leaves, in evaluation.
        crop_mode: center, squash or border, in evaluation.
        mean: of the channels, as a share of 255.
        std: likewise.
        collate_fn: None, timm's `fast_collate`, or its `FastCollateMixup`, whose settings are taken over.
        num_classes: width of soft targets; None: the collate function's, else the number of classes in the data.
        smoothing: label smoothing of the targets, mixed or not; None: the recipe's or the collate function's.
        shuffle: False: the images in the order of the dataset in every epoch. None: True in training.
        drop_last: False: the last batch of an epoch may be smaller; ranks get equal numbers of images, so that a few
            may come twice. None: True in training, False in evaluation.
        weights: of each image of the dataset: an epoch is as many draws with replacement, each image in proportion to
            its weight. "balanced": each class equally often.
        sampler: own order of the images of all ranks together: a function epoch → indices, a sampler with `set_epoch`,
            or indices for every epoch. Equal numbers in each epoch.
        transform: called with each batch of training images, uint8 (N, 3, H, W) on the device, augmented and not yet
            mixed or normalized; gives the same shape and type. It draws from torch's generators, seeded for each batch.
        return_index: give `(images, targets, index)`: int64 (N,), positions of the images in the dataset.
        num_workers: CPU threads (not processes); None: all cores of this rank's share.
        distributed: False: this process alone, whatever the environment says. None: by process group or environment.
        rank: this process; None: from the process group, else torchrun's environment.
        world_size: number of processes, with `rank`.
        device: auto (this rank's GPU, or the CPU), cpu, cuda (torch's current one), cuda:N.
        img_dtype: of the images; None: float32.
        channels_last: False makes images contiguous as (N, 3, H, W).
        use_prefetcher: False: on the CPU, unmixed, float32, as without timm's prefetcher.
        output: 'uint8' leaves images as they are: neither mixed nor normalized, whatever a recipe says; labels int64.
        pad_eval: give ranks equal numbers of images, so that a few come twice, as in timm. False: each exactly once; a
            rank whose images run out yields an empty batch.
        seed: of all draws, the same on all ranks; None: the recipe's, 0 without one.
        decode: where images are decoded: gpu (whole images), gpu-roi (the crop's region), cpu, or auto. Modes differ in
            pixels.
        hw_decoder_load: share of a batch's JPEGs for the GPU's JPEG engine, 0 to 1; None: DALI's own, 0.65.
        prefetch: batches in flight; None: 2, or as tuned.
        tuned: run a training loader as `rsbdali tune` found best on this machine for the recipe's image size, but for
            `num_workers`, `prefetch`, `decode` and `hw_decoder_load` where they are given.
        max_bad_images: more training images that do not decode are a `DataError`.
        on_bad: called once for each image that does not decode, with path and reason; by default a warning is logged.
        **others: timm's other arguments, with values that change nothing here.

    Raises:
        RecipeError: an argument that cannot be honored, by its name.
        DataError: the data is missing or not what it has to be.
        DeviceError: there is no such device.
        RsbdaliError: `tuned`, and nothing is tuned on this machine.
    """
    arguments = {name: value for name, value in locals().items() if name in RECIPE_ARGUMENTS}
    settings = _recipe(recipe, arguments, seed, is_training)
    refuse(others, is_training=is_training, honored=create_loader.__annotations__)
    mix = _mix_of(collate_fn, is_training, num_classes)
    settings = _with_targets(settings, mix, smoothing, is_plain=output == "uint8" or not use_prefetcher)
    settings = _without_erasing(settings, re_prob, is_training) if output == "uint8" else settings
    order: dict[str, Any] = {"shuffle": shuffle, "drop_last": drop_last, "weights": weights, "sampler": sampler}
    refuse_in_evaluation(is_training, **order, transform=transform, smoothing=smoothing)
    rows, dtype = _rows(batch_size, recipe), _dtype(output, img_dtype, use_prefetcher)
    world = find_world(distributed, rank, world_size)
    target = find_device(device if use_prefetcher else "cpu", world)
    data = open_index(dataset, is_training=is_training, world=meeting(world), device=target)
    pairs: dict[str, Any] = {"channels_last": channels_last, "dataset": _object(dataset)}
    pairs |= {"return_index": return_index, "item_N": data.item_N}
    work: dict[str, Any] = {"rank": world.rank, "world_size": world.size, "device": target, "dtype": dtype}
    work |= {"decode": decode, "hw_decoder_load": hw_decoder_load}
    work |= {
        "num_threads": _threads(num_workers),
        "prefetch": DEFAULT_PREFETCH if prefetch is None else prefetch,
        "on_bad": on_bad,
    }
    if not is_training:
        work |= {"batch_size": rows or DEFAULT_EVAL_ROWS, "pad": pad_eval}
        return TupleLoader(EvalLoader(data.index, settings, **work), **pairs)
    sampling = sampling_of(data, **order, repeats=settings.aug_repeats)
    settings = _per_rank(settings, rows, world, sampling, len(data.index))
    if tuned:
        given = {"num_threads": num_workers, "prefetch": prefetch, "decode": decode, "hw_decoder_load": hw_decoder_load}
        work |= _tuned(settings, target, world, given)
    work |= {"max_bad_images": max_bad_images, "sampling": sampling, "transform": transform}
    training = TrainLoader(data.index, settings, **work)
    training.mixup_enabled &= mix.enabled
    soft = _soft_classes(settings, mix, data.index)
    return TupleLoader(training, num_classes=soft, smoothing=settings.smoothing, **pairs)


@dataclass(frozen=True)
class _Mix:
    """What a collate function says of mixing: recipe keys, classes C or None, whether it is on."""

    overrides: dict[str, Any]
    num_classes: int | None = None
    enabled: bool = True


def _recipe(recipe: str | Recipe | None, arguments: Mapping[str, Any], seed: int | None, is_training: bool) -> Recipe:
    if recipe is None and arguments["input_size"] is None:
        raise RecipeError("input_size is missing: give the size in pixels, or a recipe")
    base = Recipe.load(recipe) if isinstance(recipe, str) else recipe or Recipe.from_dict(TIMM_DEFAULTS)
    base = base if seed is None else base.with_overrides({"seed": seed})
    return with_arguments(base, arguments, is_training=is_training)


def _with_targets(recipe: Recipe, mix: _Mix, smoothing: float | None, *, is_plain: bool) -> Recipe:
    """The recipe with what decides the targets; plain images are not mixed, and their labels not smoothed."""
    if is_plain and (mix.overrides or smoothing):
        name = "smoothing" if smoothing else "collate_fn=FastCollateMixup"
        raise RecipeError(f"{name} cannot be honored: output='uint8' and use_prefetcher=False give images unmixed")
    if is_plain:
        return recipe.with_overrides({"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0})
    smoothed = {} if smoothing is None else {"smoothing": smoothing}
    return recipe.with_overrides({**mix.overrides, **smoothed})


def _without_erasing(recipe: Recipe, re_prob: float | None, is_training: bool) -> Recipe:
    """The recipe for bytes: a recipe's random erasing, which comes behind normalizing, is left out."""
    if re_prob and is_training:
        raise RecipeError("output='uint8' erases nothing: set re_prob to 0")
    return recipe.with_overrides({"reprob": 0.0})


def _mix_of(collate_fn: Callable[..., Any] | None, is_training: bool, num_classes: int | None) -> _Mix:
    """The settings of timm's `FastCollateMixup` as recipe keys; a number of classes that is given goes first."""
    nothing = _Mix({}, num_classes)
    if collate_fn is None:
        return nothing
    from timm.data import FastCollateMixup
    from timm.data.loader import fast_collate
    from torch.utils.data import default_collate

    if collate_fn in (fast_collate, default_collate):
        return nothing
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
    classes = collate_fn.num_classes if num_classes is None else num_classes
    return _Mix(overrides, classes, collate_fn.mixup_enabled)


def _is_mixing(recipe: Recipe) -> bool:
    return recipe.mixup > 0 or recipe.cutmix > 0


def _soft_classes(recipe: Recipe, mix: _Mix, index: ImageIndex) -> int | None:
    """Width of the targets, None for hard ones."""
    if not _is_mixing(recipe) and not recipe.smoothing:
        return None
    if mix.num_classes is not None and mix.num_classes < index.num_classes:
        raise DataError(
            f"num_classes={mix.num_classes}: {index.name} has {counted(index.num_classes, 'class', 'classes')}"
        )
    return mix.num_classes or index.num_classes


def _dtype(output: str, img_dtype: torch.dtype | None, use_prefetcher: bool) -> torch.dtype:
    if output not in OUTPUTS:
        raise RecipeError(f"output={output!r}: use one of {', '.join(OUTPUTS)}")
    if output == "uint8":
        return torch.uint8
    if img_dtype is not None and not (isinstance(img_dtype, torch.dtype) and img_dtype.is_floating_point):
        raise RecipeError(f"img_dtype={img_dtype!r}: expected a float type of torch (output='uint8' gives the pixels)")
    # timm converts in the prefetcher, so without it images are float32 whatever img_dtype says
    return torch.float32 if img_dtype is None or not use_prefetcher else img_dtype


def _tuned(recipe: Recipe, device: torch.device, world: World, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a `TrainLoader` as tuned for this machine; what was given stays."""
    found = find_tuned(recipe, device)
    log.info("loader tuned for this machine: %s", found)
    arguments: dict[str, Any] = {"num_threads": found.threads_of(world), "prefetch": found.prefetch}
    arguments |= {"chunk": found.chunk, "decode": found.decode}
    chosen = {key: value for key, value in arguments.items() if given.get(key) in (None, "auto")}
    decode = chosen.get("decode", given["decode"])
    return chosen | {"hw_decoder_load": found.load_for(decode, given["hw_decoder_load"])}


def _object(dataset: Any) -> Any:
    """What a loader gives as its `dataset`: the object that it was made of, None for a location."""
    return None if isinstance(dataset, str | os.PathLike) else dataset


def _threads(num_workers: int | None) -> int | None:
    if num_workers is not None and num_workers < 0:
        raise RecipeError(f"num_workers={num_workers}: expected 0 or more CPU threads")
    return None if num_workers is None else max(1, num_workers)


def _rows(batch_size: int | None, recipe: str | Recipe | None) -> int | None:
    if batch_size is None and recipe is None:
        raise RecipeError("batch_size is missing: give the rows of a batch, or a recipe")
    if batch_size is not None and batch_size < 1:
        raise RecipeError(f"batch_size={batch_size}: expected at least 1")
    return batch_size


def _per_rank(recipe: Recipe, rows: int | None, world: World, sampling: Sampling, images: int) -> Recipe:
    """`rows` for each rank with a λ of its own; without them the recipe's own global batch."""
    if rows is None:
        _check_equal_shares(recipe.mix_groups, world.size)
        return recipe
    available = rows_per_epoch(sampling.length(images), max(1, recipe.aug_repeats), world.size)
    if rows * world.size > available and sampling.drop_last:
        raise DataError(
            f"batch_size={rows} on {counted(world.size, 'rank')} is more than an epoch of {counted(available, 'image')}"
        )
    return recipe.with_overrides({"global_batch_size": rows * world.size, "mix_groups": world.size})


def _check_equal_shares(groups: int, ranks: int) -> None:
    """Refuse unequal numbers of batches on the ranks, with which the trainers of other people would wait forever."""
    if groups > ranks and groups % ranks:
        allowed = ", ".join(str(number) for number in range(1, groups + 1) if groups % number == 0)
        raise RecipeError(
            f"mix_groups={groups} on {ranks} processes: create_loader (so timm's scripts, Lightning, Accelerate) "
            f"gives all processes equally many batches, which takes {allowed} processes, batch_size, or other "
            "mix_groups; `rsbdali train` and TrainLoader go with any number"
        )
