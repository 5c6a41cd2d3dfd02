"""Each rank on cores of its own, so that loaders and torch's threads of one rank do not push another's off the core.

Ranks that may use the same cores share them out; ranks that the launcher has bound to different ones keep what they
have. With GPUs a rank prefers cores of its GPU's NUMA node, where that leaves no core of the machine unused.

    cores a rank may use ─> those near its GPU ─> sent to all ranks ─> same machine, same cores: a share of them each
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsbdali.distributed import collectives
from rsbdali.distributed.world import World

log = logging.getLogger(__name__)
SYS = Path("/sys")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class RankCores:
    """What one rank sends to the others.

    Attributes:
        machine: the same text on the same machine, containers on it included.
        cores: numbers of the cores that it may use.
        near: those of them that are near its GPU; all where that is not known.
    """

    machine: str
    cores: tuple[int, ...]
    near: tuple[int, ...]


@contextmanager
def pinned(world: World, device: torch.device, *, enabled: bool = True) -> Iterator[int | None]:
    """This rank on its share of the cores while the block runs, threads that are started in it included.

    Torch's own CPU threads become as many, unless OMP_NUM_THREADS asks for more than torchrun's default of one.

    Args:
        world: the processes; their process group runs.
        device: of this rank.
        enabled: False to leave cores and torch's threads as they are, and only count.

    Yields:
        The number of cores of the share, at least 1; None for a single process, which is left as it is.
    """
    if world.size == 1:
        yield None
        return
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    cores_by_rank = collectives.from_all(find_cores(device), world)
    cores = share(cores_by_rank, world.rank)
    if not enabled:
        yield len(cores)
        return
    os.sched_setaffinity(0, cores)
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(len(cores))
    log.debug("rank %d on cores %s", world.rank, ",".join(map(str, cores)))
    try:
        yield len(cores)
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)


def find_cores(device: torch.device) -> RankCores:
    """Where this process is, and what it may use."""
    cores = tuple(by_core(os.sched_getaffinity(0)))
    near_gpu = cores_near(pci_address(device)) if device.type == "cuda" else set()
    near = tuple(core for core in cores if core in near_gpu)
    return RankCores(machine(), cores, near or cores)


def machine() -> str:
    """The same text on the same machine, containers on it included."""
    return BOOT_ID.read_text(encoding="ascii").strip()


def share(cores_by_rank: Sequence[RankCores], rank: int) -> tuple[int, ...]:
    """The cores of one rank; a single one, with others on it, where there are fewer cores than ranks."""
    mine = cores_by_rank[rank]
    neighbors = [p for p in cores_by_rank if p.machine == mine.machine]
    everything = {core for p in neighbors for core in p.cores}
    near_covers_all = {core for p in neighbors for core in p.near} == everything
    pools = [p.near if near_covers_all else p.cores for p in cores_by_rank]
    mates = [r for r, p in enumerate(cores_by_rank) if p.machine == mine.machine and pools[r] == pools[rank]]
    k, pool = mates.index(rank), pools[rank]
    if len(pool) < len(mates):
        return pool[k % len(pool) : k % len(pool) + 1]
    return pool[k * len(pool) // len(mates) : (k + 1) * len(pool) // len(mates)]


def by_core(cpus: set[int]) -> list[int]:
    """Logical CPUs in an order that keeps the threads of one physical core together."""

    def key(cpu: int) -> tuple[int, int]:
        file = SYS / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        return (min(parse_list(file.read_text(encoding="ascii"))) if file.exists() else cpu), cpu

    return sorted(cpus, key=key)


def cores_near(pci: str) -> set[int]:
    """CPUs of the NUMA node of a PCI device; empty where the kernel does not say."""
    file = SYS / "bus/pci/devices" / pci / "local_cpulist"
    return parse_list(file.read_text(encoding="ascii")) if pci and file.exists() else set()


def pci_address(device: torch.device) -> str:
    """The PCI address of a GPU as /sys spells it, 0000:3b:00.0; empty where this torch does not have it."""
    properties = torch.cuda.get_device_properties(device)
    numbers: list[Any] = [getattr(properties, f"pci_{name}_id", None) for name in ("domain", "bus", "device")]
    return "" if None in numbers else "{:04x}:{:02x}:{:02x}.0".format(*numbers)


def parse_list(text: str) -> set[int]:
    """The numbers of a kernel list such as `0-3,8`."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        low, _, high = part.partition("-")
        numbers |= set(range(int(low), int(high or low) + 1))
    return numbers
