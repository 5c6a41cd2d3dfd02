"""Where a loader for somebody else's trainer runs: which process among how many, on which device."""

import contextlib
import os

import torch
import torch.distributed as dist

from rsbdali.distributed.devices import resolve_device
from rsbdali.distributed.process_group import World, int_of, local_device
from rsbdali.errors import DeviceError


def find_world(distributed: bool | None, rank: int | None, world_size: int | None) -> World:
    """The processes that share the images: as given, else those of the process group, else of the environment.

    Raises:
        DeviceError: rank and world size do not fit, or `distributed` and nothing says how many processes there are.
    """
    if (rank is None) != (world_size is None):
        raise DeviceError("rank and world_size go together: give both, or neither under torchrun")
    if rank is not None and world_size is not None:
        if not 0 <= rank < world_size:
            raise DeviceError(f"rank={rank} is not one of {world_size} processes")
        return World(rank, world_size, int_of(os.environ, "LOCAL_RANK", 0))
    if distributed is False:
        return World()
    if _has_group():
        return World.current()
    world = World.from_env()
    if distributed and world.size == 1:
        raise DeviceError("distributed=True, but there is no process group, and no WORLD_SIZE in the environment")
    return world


def meeting(world: World) -> World:
    """The processes that can wait for each other: `world`, or this one alone where no process group joins them."""
    return world if _has_group() and dist.get_world_size() == world.size else World()


def find_device(device: str | torch.device, world: World) -> torch.device:
    """'auto': this rank's GPU where there is one, else the CPU; anything else as torch means it.

    Raises:
        DeviceError: there is no such device.
    """
    return resolve_device(local_device("auto", world) if str(device) == "auto" else device)


def as_current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The device as torch's current one for a while: NCCL's collectives of plain values look for it there."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()
