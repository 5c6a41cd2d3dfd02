"""What a run is, in three lines at its start: the training, the data, the device and the batch."""

from pathlib import Path

import torch

from rsbdali.data.index import ImageIndex
from rsbdali.distributed.world import World
from rsbdali.runs.state import Identity
from rsbdali.training.precision import amp_dtype, name_of


def banner(
    identity: Identity,
    parameters: int,
    images: tuple[ImageIndex, ImageIndex],
    folder: Path,
    world: World,
    device: torch.device,
) -> list[str]:
    """Three lines.

    Args:
        identity: recipe, classes, mix groups and steps of an epoch.
        parameters: of the model.
        images: for training, and for evaluation.
        folder: of the run.
        world: its processes.
        device: of rank 0.
    """
    recipe, (train, val) = identity.recipe, images
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    dtype = name_of(amp_dtype(recipe.amp_dtype, device))
    classes = len(identity.class_names)
    groups, rest = divmod(identity.mix_groups, world.size)
    rows = recipe.global_batch_size // identity.mix_groups
    return [
        f"{recipe.name}: {recipe.model}, {parameters / 1e6:.1f} M parameters, {recipe.epochs} epochs of "
        f"{identity.steps_per_epoch} steps, {dtype} on {where}{f', {world.size} processes' if world.size > 1 else ''}",
        f"data: {train.name}, {len(train):,} images, {len(val):,} to evaluate on, {classes:,} classes",
        f"output: {folder}; batch {recipe.global_batch_size:,} = "
        + (
            f"{_counted(identity.mix_groups, 'mix group')} × {_counted(rows, 'row')} on {_counted(world.size, 'rank')}"
            if rest
            else f"{_counted(world.size, 'rank')} × {_counted(groups, 'mix group')} × {_counted(rows, 'row')}"
        ),
    ]


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
