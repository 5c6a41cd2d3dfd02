"""One process a GPU under torchrun: who am I, start and stop of the process group, small collectives.

Without torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK) everything here is the single-process case and does
nothing. GPUs talk by NCCL, CPUs by gloo.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from rsbdali.errors import DeviceError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # the others wait as long for rank 0 to index a large folder


@dataclass(frozen=True)
class World:
    """This process among the others.

    Attributes:
        rank: 0 … size − 1; rank 0 writes files and talks.
        size: number of processes W.
        local_rank: number of this process on its node, and of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_primary(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "World":
        """The world that torchrun describes in the environment; a single process where it does not.

        Raises:
            DeviceError: the variables are there in part, or are no numbers.
        """
        if int_of(env, "WORLD_SIZE", 1) == 1:
            return cls()
        missing = [key for key in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if key not in env]
        if missing:
            raise DeviceError(f"WORLD_SIZE is set but {', '.join(missing)} is not: start with torchrun, or unset it")
        return cls(int_of(env, "RANK", 0), int_of(env, "WORLD_SIZE", 1), int_of(env, "LOCAL_RANK", 0))


def int_of(env: Mapping[str, str], key: str, default: int) -> int:
    """A whole number from the environment, or a `DeviceError` that names the variable."""
    text = env.get(key, str(default))
    if not text.isdigit():
        raise DeviceError(f"{key}={text!r} in the environment: expected a whole number (torchrun sets it)")
    return int(text)


@contextmanager
def process_group(world: World, device: torch.device) -> Iterator[None]:
    """The process group of `world` while the block runs; nothing for a single process.

    Ranks above 0 log warnings only meanwhile.

    Args:
        world: from `World.from_env`.
        device: of this process; its type chooses NCCL or gloo.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world.size == 1 or dist.is_initialized():  # a group that the caller started stays the caller's
        yield
        return
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device, timeout=TIMEOUT)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    log = logging.getLogger("rsbdali")
    level = log.level
    if not world.is_primary:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
    # not after an error: the others may wait in a collective that this rank will never join, and so would the goodbye
    dist.destroy_process_group()


def local_device(device: str, world: World) -> str:
    """`device` for this process: 'auto' and 'cuda' become this process's own GPU where there are several processes.

    Raises:
        DeviceError: more processes on this node than GPUs, or one numbered GPU for all.
    """
    if world.size == 1 or device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return device
    if device not in ("auto", "cuda"):
        raise DeviceError(f"--device {device} under torchrun: use cuda, and each process takes its own GPU")
    if world.local_rank >= torch.cuda.device_count():
        raise DeviceError(
            f"process {world.local_rank} of this node has no GPU: {torch.cuda.device_count()} here; "
            "lower torchrun's --nproc-per-node"
        )
    return f"cuda:{world.local_rank}"


def barrier(world: World) -> None:
    """Wait for all processes."""
    if world.size > 1:
        dist.barrier()


def sum_(tensor: torch.Tensor, world: World) -> torch.Tensor:
    """Sum a tensor over all processes in place, and return it. Does not wait for the GPU."""
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor


def from_primary(value: T, world: World) -> T:
    """Rank 0's plain value (text, numbers) on every rank."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def primary_first(make: Callable[[bool], T], world: World) -> T:
    """`make(True)` on rank 0, which may fill a cache; then `make(False)` on the others."""
    if world.is_primary:
        value = make(True)
    barrier(world)
    return value if world.is_primary else make(False)
