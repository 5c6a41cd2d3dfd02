"""Which ranks share this machine, and which GPU is whose, where no launcher says it.

torchrun and srun set LOCAL_RANK and LOCAL_WORLD_SIZE, or what they follow from. `mp.spawn`, mpirun and notebooks start
a process group at most. There every rank leaves a note in the group's store and reads those of the others; a collective
would not do, since NCCL's need to know their GPU before.
"""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from rsbdali.distributed.affinity import machine
from rsbdali.distributed.process_group import TIMEOUT
from rsbdali.distributed.world import World
from rsbdali.errors import DeviceError


def ranks_here(world: World) -> int:
    """Number of ranks on this machine, at least 1: by the launcher, else by the process group.

    Where there is neither, all ranks are taken to be here, but no more than there are GPUs.

    Raises:
        DeviceError: see `notes`.
    """
    if world.size == 1 or world.local_size is not None:
        return world.local_size or 1
    gathered = notes("machine", machine(), world)
    if gathered is None:
        return min(world.size, torch.cuda.device_count() or world.size)
    return gathered.count(machine())


def current_gpu(world: World) -> int:
    """Torch's current device, once it is known that no other rank has the same.

    Raises:
        DeviceError: another rank has it, or may have; see `notes` as well.
    """
    index = torch.cuda.current_device()
    mine = f"{machine()} {torch.cuda.get_device_properties(index).uuid}"
    gathered = notes("gpu", mine, world)
    if gathered is None:
        doubtful = world.rank > 0 and index == 0 and torch.cuda.device_count() > 1  # 0: maybe it was never set
        others = "rank 0 may have" if doubtful else ""
    else:
        same = [str(rank) for rank, note in enumerate(gathered) if note == mine and rank != world.rank]
        others = f"rank {', '.join(same)} has" if same else ""
    if others:
        raise DeviceError(
            f"device='auto': torch's current device on rank {world.rank} is cuda:{index}, which {others} too: "
            "call torch.cuda.set_device before, or give device='cuda:N'"
        )
    return index


def notes(kind: str, mine: str, world: World, wait: timedelta = TIMEOUT) -> list[str] | None:
    """What every rank notes, by rank; None where no process group joins them.

    Raises:
        DeviceError: not all ranks came in time.
    """
    store = _store(world)
    if store is None:
        return None
    keys = [f"rsbdali/{kind}/{rank}" for rank in range(world.size)]
    store.set(keys[world.rank], mine)
    try:
        store.wait(keys, wait)
    except RuntimeError as error:  # of which DistStoreError is one
        raise DeviceError(
            f"not all {world.size} ranks made a loader within {wait.total_seconds():g} s, as is needed where no "
            "LOCAL_RANK and LOCAL_WORLD_SIZE are set: give device and num_workers, or rank=0 and world_size=1 for a "
            "loader of one process"
        ) from error
    return [store.get(key).decode() for key in keys]


def joined(world: World) -> bool:
    """Whether a process group joins the ranks of `world`."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() == world.size


def _store(world: World) -> Any:
    """The default group's store; None for MPI's own backend as well, which has none."""
    return dist.distributed_c10d._get_default_store() if joined(world) else None
