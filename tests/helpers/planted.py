"""A machine with a clock of its own, and loaders and a GPU on it, to plant bottlenecks; see test_watch.py."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rsbdali.tools.watch.machine import Machine

TICKS = os.sysconf("SC_CLK_TCK")
ROWS = 8
Cost = Callable[[int, int], float]


class Planted:
    """A machine whose clock moves by `spend` alone, and whose /proc and control group are files of the test.

    Args:
        folder: for the files.
        cores: of the machine, all for this process.
        quota: cores that cpu.max grants; None: no such file.
    """

    def __init__(self, folder: Path, cores: int = 16, quota: float | None = None) -> None:
        self.now = self.cpu = self.others = 0.0
        self.throttled = False
        self.worker_cpu: Callable[[int], float] = lambda pid: 0.0  # CPU seconds by now
        self.read: Callable[[], float] = lambda: 0.0
        self.pids: list[int] = []
        self._cores, self._folder = cores, folder
        folder.mkdir(exist_ok=True)
        if quota is not None:
            (folder / "cpu.max").write_text(f"{quota * 100_000:.0f} 100000\n")
        self.machine = Machine(self._time, lambda: self.cpu, folder, folder, set(range(cores)))
        look = self.machine.counters
        self.machine.counters = lambda workers: (self._write(), look(workers))[1]  # type: ignore[method-assign]

    def _time(self) -> float:
        return self.now

    def spend(self, seconds: float, cpu: float = 0.0) -> None:
        self.now, self.cpu = self.now + seconds, self.cpu + cpu

    def _write(self) -> None:
        busy = self.cpu + self.others * self.now
        for pid in self.pids:
            used = self.worker_cpu(pid)
            busy += used
            (self._folder / str(pid)).mkdir(exist_ok=True)
            fields = ["S", *["0"] * 10, str(int(used * TICKS)), "0"]
            (self._folder / str(pid) / "stat").write_text(f"{pid} (python (a) b) {' '.join(fields)}\n")
            (self._folder / str(pid) / "io").write_text(f"rchar: 1\nread_bytes: {int(self.read() / len(self.pids))}\n")
        each = int(busy * TICKS / self._cores)
        (self._folder / "stat").write_text("".join(f"cpu{i} {each} 0 0 9 9 0 0 0\n" for i in range(self._cores)))
        periods = int(self.now * 10)
        (self._folder / "cpu.stat").write_text(
            f"usage_usec 1\nnr_periods {periods}\nnr_throttled {periods // 2 if self.throttled else 0}\n"
        )


class Loader:
    """As torch's DataLoader: `workers` processes that take turns, each with `prefetch_factor` batches ahead.

    Args:
        machine: whose clock runs.
        cost: seconds for worker w to make batch k.
        workers: 0: batches are made while the loop waits.
        cpu: share of that time that is computing; the rest is waiting for files.
        start: seconds until the workers have started.
    """

    def __init__(
        self,
        machine: Planted,
        cost: Cost,
        workers: int = 2,
        *,
        batches: int = 120,
        cpu: float = 1.0,
        start: float = 0.0,
    ) -> None:
        self.machine, self.cost, self.num_workers, self.cpu, self.start = machine, cost, workers, cpu, start
        self.prefetch_factor = 2 if workers else None
        self.persistent_workers = False
        self.batches = [(torch.full((ROWS, 2), float(k)), torch.tensor([k] * ROWS)) for k in range(batches)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> "Made | Iterator[Any]":
        self.machine.spend(self.start)
        return Made(self) if self.num_workers else self._here()

    def _here(self) -> Iterator[Any]:
        for k, batch in enumerate(self.batches):
            seconds = self.cost(0, k)
            self.machine.spend(seconds, cpu=seconds * self.cpu)
            yield batch


class Made:
    """The iterator: when each batch is there follows from the costs and from when its worker was asked for it."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.machine, self.given, self.finished = loader, loader.machine, 0, list[tuple[float, float]]()
        self.asked = [self.machine.now] * (2 * loader.num_workers)
        self._workers = [SimpleNamespace(pid=900 + w) for w in range(loader.num_workers)]
        self._task_info: dict[int, tuple[Any, ...]] = {}
        self.machine.pids = [worker.pid for worker in self._workers]
        self.machine.worker_cpu = self._used
        self._make()

    def _make(self) -> None:
        count = self.loader.num_workers
        for k in range(len(self.finished), len(self.asked)):
            before = self.finished[k - count][0] if k >= count else 0.0
            cost = self.loader.cost(k % count, k)
            self.finished.append((max(before, self.asked[k]) + cost, cost))

    def _used(self, pid: int) -> float:
        mine = self.finished[pid - 900 :: self.loader.num_workers]
        return sum(self.loader.cpu * max(0.0, min(cost, self.machine.now - end + cost)) for end, cost in mine)

    def __iter__(self) -> "Made":
        return self

    def __next__(self) -> Any:
        k = self.given
        if k == len(self.loader):
            raise StopIteration
        self.machine.now = max(self.machine.now, self.finished[k][0])
        self.given += 1
        self.asked.append(self.machine.now)
        self._make()
        under_way = range(k + 1, len(self.finished))
        self._task_info = {j: (0, "data") if self.finished[j][0] <= self.machine.now else (0,) for j in under_way}
        return self.loader.batches[k]


class Gpu:
    """A stream of the test's own: work waits its turn, the host does not wait for it."""

    def __init__(self, machine: Planted, patch: pytest.MonkeyPatch) -> None:
        self.machine, self.free_at, self.made = machine, 0.0, 0
        gpu = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing
                gpu.made += 1

            def record(self) -> None:
                self.at = max(machine.now, gpu.free_at)

            def query(self) -> bool:
                return self.at <= machine.now

            def elapsed_time(self, end: "Event") -> float:
                assert self.query()
                assert end.query(), "reading the time of an event that has not passed waits for it"
                return 1e3 * (end.at - self.at)

        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.Tensor, "is_pinned", lambda _: False)

    def step(self, seconds: float) -> None:
        self.machine.spend(0.001)  # launching
        self.free_at = max(self.machine.now, self.free_at) + seconds
