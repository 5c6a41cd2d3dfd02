"""What a run is, in three lines at its start: the training, the data, the device and the batch."""

from pathlib import Path

import torch

from rsbdali.data.index import ImageIndex
from rsbdali.distributed.world import World
from rsbdali.errors import counted
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
    processes = f", {world.size} processes" if world.size > 1 else ""
    groups, rest = divmod(identity.mix_groups, world.size)
    rows = recipe.global_batch_size // identity.mix_groups
    return [
        f"{recipe.name}: {recipe.model}, {parameters / 1e6:.1f} M parameters, {counted(recipe.epochs, 'epoch')} of "
        f"{counted(identity.steps_per_epoch, 'step')}, {dtype} on {where}{processes}",
        f"data: {train.name}, {counted(len(train), 'image')}, {len(val):,} to evaluate on, "
        f"{counted(classes, 'class', 'classes')}",
        f"output: {folder}; batch {recipe.global_batch_size:,} = "
        + (
            f"{counted(identity.mix_groups, 'mix group')} × {counted(rows, 'row')} on {counted(world.size, 'rank')}"
            if rest
            else f"{counted(world.size, 'rank')} × {counted(groups, 'mix group')} × {counted(rows, 'row')}"
        ),
    ]
