"""What Linux reports of the work behind a loader: CPU time, cores that are busy, the container's quota, bytes read."""

import contextlib
import os
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from rsbdali.distributed.processes import PROC, busy_s, cpu_quota, stat_fields

CGROUP = Path("/sys/fs/cgroup")
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_UTIME, _STIME = 11, 12  # fields of /proc/PID/stat behind the name


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Counts since some start, at one moment; differences mean something.

    Attributes:
        at: seconds.
        process_cpu_s: CPU seconds of this process, all threads.
        workers_cpu_s: CPU seconds of the worker processes together.
        delayed_s: seconds that the worker processes, or without them the threads here, wanted a core and had none.
        busy_s: CPU seconds that all programs had of the cores that this process may use.
        read_bytes: that this process and the workers had read from storage, not from the page cache.
        periods: of the container's CPU quota.
        throttled: periods of it that were used up before their end.
    """

    at: float
    process_cpu_s: float
    workers_cpu_s: float
    delayed_s: float
    busy_s: float
    read_bytes: int
    periods: int
    throttled: int


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What happened between two moments.

    Attributes:
        seconds: between them.
        cores_used: of this process and the workers, on average.
        worker_cores: of the workers alone.
        cores_lacking: that the workers wanted beside those they had.
        cores_busy: by all programs.
        read_bytes_per_s: from storage.
        throttled: share of the quota's periods that were used up.
        cores: that this process may use.
        quota: cores that the container's quota grants; None without one.
    """

    seconds: float
    cores_used: float
    worker_cores: float
    cores_lacking: float
    cores_busy: float
    read_bytes_per_s: float
    throttled: float
    cores: int
    quota: float | None

    @property
    def limit(self) -> float:
        """Cores that can be used."""
        return self.cores if self.quota is None else min(self.cores, self.quota)

    @property
    def cores_free(self) -> float:
        """Cores that are idle and that this process may use."""
        return max(0.0, min(self.cores - self.cores_busy, self.limit - self.cores_used))


class Machine:
    """This machine, as this process sees it.

    Args:
        clock: seconds.
        cpu_clock: CPU seconds of this process.
        proc: where Linux shows its processes.
        cgroup: where it shows the container's limits.
        cores: that this process may use; None: its affinity mask.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
        proc: Path = PROC,
        cgroup: Path = CGROUP,
        cores: Set[int] | None = None,
    ) -> None:
        self.clock, self.cpu_clock = clock, cpu_clock
        self._proc, self._cgroup = proc, cgroup
        self._cores = os.sched_getaffinity(0) if cores is None else cores

    def counters(self, workers: Sequence[int]) -> Counters:
        """Now; `workers` are process ids. What cannot be read counts as 0."""
        stats = [stat_fields(pid, self._proc) for pid in workers]
        throttling = self._throttling()
        return Counters(
            at=self.clock(),
            process_cpu_s=self.cpu_clock(),
            workers_cpu_s=sum(int(s[_UTIME]) + int(s[_STIME]) for s in stats if s) * _TICK_S,
            delayed_s=sum(map(self._delayed_s, map(str, workers))) if workers else self._delayed_s("self"),
            busy_s=busy_s(self._cores, self._proc),
            read_bytes=sum(map(self._read_bytes, ("self", *map(str, workers)))),
            periods=throttling.get("nr_periods", 0),
            throttled=throttling.get("nr_throttled", 0),
        )

    def usage(self, first: Counters, last: Counters) -> Usage:
        """Between two moments."""
        seconds = last.at - first.at
        worker_cores = (last.workers_cpu_s - first.workers_cpu_s) / seconds
        return Usage(
            seconds=seconds,
            cores_used=(last.process_cpu_s - first.process_cpu_s) / seconds + worker_cores,
            worker_cores=worker_cores,
            cores_lacking=(last.delayed_s - first.delayed_s) / seconds,
            cores_busy=(last.busy_s - first.busy_s) / seconds,
            read_bytes_per_s=(last.read_bytes - first.read_bytes) / seconds,
            throttled=(last.throttled - first.throttled) / max(1, last.periods - first.periods),
            cores=len(self._cores),
            quota=cpu_quota(self._cgroup),
        )

    def _read_bytes(self, process: str) -> int:
        return _numbers(self._proc / process / "io").get("read_bytes", 0)

    def _delayed_s(self, process: str) -> float:
        """Of all its threads: the second number of each thread's schedstat, in nanoseconds."""
        found = 0
        for path in (self._proc / process / "task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # a thread that has ended meanwhile
                found += int(path.read_text().split()[1])
        return found / 1e9

    def _throttling(self) -> dict[str, int]:
        return _numbers(self._cgroup / "cpu.stat")


def _numbers(path: Path) -> dict[str, int]:
    """Lines `name: number` or `name number` of a file; none of one that is not there or not to be read."""
    with contextlib.suppress(OSError):
        words = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
        return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdigit()}
    return {}
