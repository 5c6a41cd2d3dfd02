"""CPU time and memory of a process with all its children, and the timing of one round.

A peer that works in worker processes and one that works in threads must be counted alike: CPU time is that of the whole
process tree, the reaped included, from /proc; memory is the proportional set size (PSS), which counts a page shared by
k processes k times 1/k, so that forked workers are not charged for what they share.

A round also takes down what all programs together had of the cores it might use, since a figure of a machine that was
busy with something else is no figure of a loader.
"""

import os
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path

from rsbdali.distributed import processes
from rsbdali.distributed.processes import stat_fields

PROC = Path("/proc")
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PPID, _UTIME, _CSTIME = 1, 11, 14  # fields of /proc/PID/stat behind the name: utime stime cutime cstime are adjacent


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one measured round gave.

    Attributes:
        images: images delivered.
        seconds: wall clock.
        cpu_s: CPU seconds of the process tree.
        wait_s: seconds the consumer stood waiting for each batch, in order.
        memory_bytes: PSS of the process tree at the end of the round.
        cores: cores that the process may use.
        busy_s: CPU seconds that all programs had of these cores; 0 where the kernel does not say.
        load: the machine's load average over the last minute, at the end of the round.
    """

    images: int
    seconds: float
    cpu_s: float
    wait_s: tuple[float, ...]
    memory_bytes: int
    cores: int
    busy_s: float
    load: float

    @property
    def images_per_s(self) -> float:
        """Images a second of wall clock."""
        return self.images / self.seconds

    @property
    def cpu_us_per_image(self) -> float:
        """CPU microseconds an image, all processes and threads together."""
        return self.cpu_s / self.images * 1e6


def tree(pid: int) -> list[int]:
    """`pid` and all its live descendants."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := stat_fields(int(entry.name), PROC)):
            children.setdefault(int(fields[_PPID]), []).append(int(entry.name))
    found = [pid]
    for parent in found:  # grows while it is walked
        found.extend(children.get(parent, ()))
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds (user and system) that the process tree has used, its exited and reaped members included."""
    ticks = sum(int(t) for p in tree(pid) for t in stat_fields(p, PROC)[_UTIME : _CSTIME + 1])
    return ticks * _TICK_S


def busy_s(cores: Set[int]) -> float:
    """CPU seconds since the start of the machine that some cores were not idle, whoever used them."""
    return processes.busy_s(cores, PROC)


def memory_bytes(pid: int) -> int:
    """Proportional set size of the process tree, in bytes."""
    return sum(_pss(p) for p in tree(pid))


def measure(deliver: Callable[[], int], *, seconds: float, warm_up: int, finish: Callable[[], None]) -> Round:
    """Time one round of batches.

    Args:
        deliver: hands over the next batch and returns its number of images.
        seconds: wall clock to measure for; the round ends with the first batch past it, and holds at least two.
        warm_up: batches to take before the clock starts: at least what the feed keeps ready, so that nothing made
            beforehand is counted.
        finish: waits until the device has done what was queued.
    """
    for _ in range(warm_up):
        deliver()
    finish()
    pid, cores, images, wait_s = os.getpid(), os.sched_getaffinity(0), 0, list[float]()
    cpu_start, busy_start, start = cpu_s(pid), busy_s(cores), time.perf_counter()
    before = start
    while len(wait_s) < 2 or before - start < seconds:
        images += deliver()
        now = time.perf_counter()
        wait_s.append(now - before)
        before = now
    finish()
    # the cores' counters next to the clock: walking through /proc takes its time
    elapsed, busy, used = time.perf_counter() - start, busy_s(cores) - busy_start, cpu_s(pid) - cpu_start
    return Round(
        images=images,
        seconds=elapsed,
        cpu_s=used,
        wait_s=tuple(wait_s),
        memory_bytes=memory_bytes(pid),
        cores=len(cores),
        busy_s=busy,
        load=os.getloadavg()[0],
    )


def _pss(pid: int) -> int:
    try:
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        return 0
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except PermissionError:  # hardened kernels: the resident set is what is left to read
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE
