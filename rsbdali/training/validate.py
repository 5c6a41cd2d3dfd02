"""`rsbdali validate`: a checkpoint, or one of timm's published models, on all images of a validation set."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch

from rsbdali.data.index import ImageIndex
from rsbdali.data.splits import open_split
from rsbdali.distributed import collectives, devices, process_group
from rsbdali.distributed.devices import resolve_device
from rsbdali.distributed.world import World
from rsbdali.errors import CheckpointError, RecipeError, RsbdaliError
from rsbdali.loader import EvalLoader
from rsbdali.loader.batch import EvalBatch
from rsbdali.loader.decode_mode import evaluation_decode
from rsbdali.loader.eval import eval_batch_size
from rsbdali.progress_bar import counting
from rsbdali.recipe import Recipe
from rsbdali.runs import checkpoint
from rsbdali.runs.checkpoint import load_weights
from rsbdali.runs.checkpoint_record import read_record
from rsbdali.training.evaluate import EvalResult, evaluate
from rsbdali.training.model import check_model, create_model
from rsbdali.training.precision import amp_dtype, kernel_policy, warn_if_emulated

FALLBACK = "a3"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ValidateOptions:
    """One evaluation: of a checkpoint, or of a model by name.

    Attributes:
        data: folder with val/<class>/… (or validation).
        checkpoint: file of `rsbdali train`, or another with a state dict; then `model` names the architecture.
        model: timm's name.
        pretrained: with `model`: timm's published weights.
        recipe: settings, by name or path; None: the checkpoint's own, or the published weights', else a3.
        overrides: recipe keys set otherwise.
        use_ema: averaged weights where a checkpoint has some.
        device: auto, cpu, cuda or cuda:N.
        workers: CPU threads of the loader.
        batch_size: rows of a batch; None: 256 on a GPU, 64 on a CPU.
        val_labels: label file of a flat val folder.
        class_map: file of class names in label order, where no checkpoint names them.
    """

    data: Path
    checkpoint: Path | None = None
    model: str | None = None
    pretrained: bool = False
    recipe: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    use_ema: bool = True
    device: str = "auto"
    workers: int | None = None
    batch_size: int | None = None
    val_labels: Path | None = None
    class_map: Path | None = None


def validate(options: ValidateOptions) -> EvalResult:
    """Top-1, top-5 and loss over exactly all validation images.

    A checkpoint of `rsbdali train` brings its recipe and class names along, so it gives the figures of its log.

    Raises:
        RsbdaliError: nothing to validate was named, or data and model do not fit.
    """
    content = None if options.checkpoint is None else checkpoint.read(options.checkpoint)
    recipe = choose_recipe(options, content)
    world = World.from_env()
    device = resolve_device(devices.local_device(options.device, world))
    with process_group.process_group(world, device), kernel_policy(device, deterministic=False):
        index = collectives.rank_zero_first(lambda first: _index(options, content, check=first), world)
        dtype = amp_dtype(recipe.amp_dtype, device)
        if world.is_rank_zero:
            warn_if_emulated(dtype, device)
            for bad in index.bad:
                log.warning("no image, skipped: %s (%s)", bad.path, bad.reason)
        model = _model(options, content, recipe, index.num_classes).to(device)
        record = read_record(content or {}, str(options.checkpoint))
        loader = EvalLoader(
            index,
            recipe,
            decode=evaluation_decode("" if record is None else record.decode, device),
            hw_decoder_load=None if record is None else record.hw_decoder_load,
            rank=world.rank,
            world_size=world.size,
            device=device,
            num_threads=options.workers,
            batch_size=options.batch_size or eval_batch_size(device),
            dtype=dtype,
        )
        with closing(loader), counting("evaluate") if world.is_rank_zero else nullcontext() as advance:
            return evaluate(model, _counted(loader, advance), device=device, amp_dtype=dtype, world=world)


def _counted(loader: EvalLoader, advance: Callable[[int, int], None] | None) -> Iterator[EvalBatch]:
    for number, batch in enumerate(loader, 1):
        yield batch
        if advance is not None:
            advance(number, len(loader))


def choose_recipe(options: ValidateOptions, content: Mapping[str, Any] | None) -> Recipe:
    """The recipe asked for, else the one the checkpoint or the published weights were evaluated with."""
    if content is None and options.model is None:
        raise RsbdaliError("nothing to validate: give --checkpoint PATH, or --model NAME --pretrained")
    if options.model is not None:
        check_model(options.model)
    if content is None and not options.pretrained:
        raise RsbdaliError(f"--model {options.model} has no weights yet: add --pretrained, or give --checkpoint PATH")
    record = read_record(content or {}, str(options.checkpoint))
    if options.recipe is not None:
        values: dict[str, Any] = Recipe.load(options.recipe).to_dict()
    elif record is not None:
        values = dict(record.recipe)
    else:
        values = {**Recipe.load(FALLBACK).to_dict(), **_published(options)}
    if content is not None:
        arch = content.get("arch")
        values["model"] = options.model or (arch if isinstance(arch, str) else values["model"])
    elif options.model is not None:
        values["model"] = options.model
    recipe = Recipe.from_dict(values)
    return recipe.with_overrides(options.overrides) if options.overrides else recipe


def _published(options: ValidateOptions) -> dict[str, Any]:
    """The evaluation that timm states for published weights: size, crop, mean, std, filter."""
    config = timm.models.get_pretrained_cfg(options.model) if options.pretrained and options.model else None
    if config is None:
        return {}
    size = list((config.test_input_size or config.input_size)[1:])
    return {
        "img_size": size,
        "test_img_size": size,
        "crop_pct": config.test_crop_pct or config.crop_pct,
        "mean": list(config.mean),
        "std": list(config.std),
        "interpolation": config.interpolation if config.interpolation in ("bilinear", "bicubic") else "bicubic",
    }


def _index(options: ValidateOptions, content: Mapping[str, Any] | None, *, check: bool) -> ImageIndex:
    record = read_record(content or {}, str(options.checkpoint))
    return open_split(
        options.data,
        "val",
        classes=None if record is None else record.class_names,
        labels=options.val_labels,
        class_map=options.class_map,
        check=check,
    )


def _model(
    options: ValidateOptions, content: Mapping[str, Any] | None, recipe: Recipe, num_classes: int
) -> torch.nn.Module:
    if content is None or options.checkpoint is None:
        published = timm.models.get_pretrained_cfg(recipe.model)
        if published is not None and published.num_classes != num_classes:
            raise RecipeError(f"{recipe.model} knows {published.num_classes} classes, the data has {num_classes}")
        return create_model(recipe, num_classes, pretrained=True)
    if not isinstance(content.get("arch", options.model), str):
        raise CheckpointError(f"{options.checkpoint} does not say its model: add --model NAME")
    model = create_model(recipe, num_classes)
    load_weights(model, checkpoint.weights(content, use_ema=options.use_ema), options.checkpoint)
    return model
