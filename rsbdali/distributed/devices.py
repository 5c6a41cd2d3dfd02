"""Where batches are made: the device by name, the CPU threads of this process, arrays on their way to a device."""

import contextlib
import os

import numpy as np
import torch
import torch.distributed as dist

from rsbdali.distributed import neighbors
from rsbdali.distributed.world import World
from rsbdali.errors import DeviceError, counted


def resolve_device(device: str | torch.device) -> torch.device:
    """`device` as torch has it; 'auto' means the GPU of this process where there is one.

    Raises:
        DeviceError: a GPU was asked for and there is none.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"device={device}: use auto, cpu, cuda or cuda:N") from error
    if resolved.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"device={device}: torch sees no GPU here (see rsbdali doctor); try device=cpu")
        return torch.device("cuda", resolved.index if resolved.index is not None else torch.cuda.current_device())
    if resolved.type != "cpu":
        raise DeviceError(f"device={device}: only cpu and cuda are known here")
    return resolved


def default_threads(world: World | None = None) -> int:
    """CPU threads this process may use: the cores of its affinity mask, shared among the ranks of the node.

    Under `rsbdali train` the ranks know better, see `affinity`.

    Args:
        world: the processes; None: those of the process group, else of the environment.

    Raises:
        DeviceError: no launcher says how many ranks this node has, and not all ranks ask.
    """
    world = find_world(None, None, None) if world is None else world
    return max(1, len(os.sched_getaffinity(0)) // neighbors.ranks_here(world))


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array on `device`; the copy to a GPU does not hold the host up."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # from pinned memory, else the copy would wait
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def local_device(device: str, world: World) -> str:
    """`device` for this process: 'auto' and 'cuda' become this process's own GPU where there are several processes.

    That is the GPU of its local rank, or, where no launcher says one, torch's current device.

    Raises:
        DeviceError: more processes on this node than GPUs, one numbered GPU for all, or one current device for several.
    """
    if world.size == 1 or device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return device
    if device not in ("auto", "cuda"):
        raise DeviceError(f"device={device} under torchrun: use cuda, and each process takes its own GPU")
    count = torch.cuda.device_count()
    # srun --gpus-per-task=1 lets every rank see one GPU, its own
    if world.local_rank is None or (count == 1 and world.local_rank > 0 and neighbors.joined(world)):
        return f"cuda:{neighbors.current_gpu(world)}"
    if world.local_rank >= count:
        raise DeviceError(
            f"process {world.local_rank} of this node has no GPU: {count} here; lower torchrun's --nproc-per-node"
        )
    return f"cuda:{world.local_rank}"


def find_world(distributed: bool | None, rank: int | None, world_size: int | None) -> World:
    """The processes that share the images: as given, else those of the process group, else of the environment.

    Raises:
        DeviceError: rank and world size do not fit, or `distributed` and nothing says how many processes there are.
    """
    if (rank is None) != (world_size is None):
        raise DeviceError("rank and world_size go together: give both, or neither under torchrun")
    if rank is not None and world_size is not None:
        if not 0 <= rank < world_size:
            raise DeviceError(f"rank={rank} is not one of {counted(world_size, 'process', 'processes')}")
        return World.of(rank, world_size)
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
    return world if neighbors.joined(world) else World()


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
