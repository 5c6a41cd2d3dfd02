"""Keeps an executor's queue full, in order.

The loader above knows what comes when; the executor below knows how to make it. Between them is a queue of jobs:

    batch 41  batch 42  batch 43       batch index: running number of a batch of this rank, across epochs
    plan      plan      plan           plan: what the executor makes
    (done)    (running) (queued)

A jump (another epoch, a resume) leaves stale batches in the queue; they are collected and dropped. An exception
(Ctrl-C, a source that fails) drops the executor with all that is in flight; the next batch gets a new one.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from rsbdali.errors import RsbdaliError
from rsbdali.pipelines.executor import DecodedBatch

Plan = TypeVar("Plan")
PlanIn = TypeVar("PlanIn", contravariant=True)


class Runs(Protocol[PlanIn]):
    """What a prefetcher needs of an executor: a FIFO of plans in, image batches out.

    Attributes:
        pixels: see `pipelines.executor.Executor`.
    """

    pixels: str

    def submit(self, plan: PlanIn) -> None:
        """Queue one batch."""

    def collect(self) -> DecodedBatch:
        """The oldest batch."""
        ...

    def close(self) -> None:
        """Drop what is not collected, and free everything."""


@dataclass
class _Job(Generic[Plan]):
    batch_index: int
    plan: Plan
    result: DecodedBatch | None = None


class Prefetcher(Generic[Plan]):
    """Batches by index, `prefetch_depth` of them in flight.

    Args:
        open_executor: makes what makes the batches; called at once, and again after an exception.
        make: the plan of a batch index, or None past the last one.
        prefetch_depth: batches in flight.

    Attributes:
        pixels: the executor's.
        wait_s: seconds that callers were blocked.
    """

    def __init__(
        self, open_executor: Callable[[], Runs[Plan]], *, make: Callable[[int], Plan | None], prefetch_depth: int
    ) -> None:
        if not isinstance(prefetch_depth, int | np.integer) or prefetch_depth < 1:
            raise RsbdaliError(f"prefetch={prefetch_depth!r}: expected a number of batches in flight, at least 1")
        self._open, self._make, self._depth = open_executor, make, prefetch_depth
        first = open_executor()
        self.pixels = first.pixels
        self._executor: Runs[Plan] | None = first
        self._closed = False
        self._jobs: deque[_Job[Plan]] = deque()
        self.wait_s = 0.0

    def get(self, batch_index: int) -> tuple[Plan, DecodedBatch]:
        """The plan and images of one batch; later ones are queued behind it."""
        with self._running() as executor:
            self._drop_stale(executor, batch_index)
            self._fill(executor, batch_index)
            job = self._jobs[0]
            result = job.result or executor.collect()
            self._jobs.popleft()
            self._fill(executor, batch_index + 1)
        return job.plan, result

    def run(self, plan: Plan) -> DecodedBatch:
        """One plan by itself; as the executor is a FIFO, the jobs behind are collected first, and kept."""
        with self._running() as executor:
            for job in self._jobs:
                job.result = job.result or executor.collect()
            executor.submit(plan)
            return executor.collect()

    def close(self) -> None:
        """Close the executor for good."""
        self._closed = True
        self._drop()

    @contextmanager
    def _running(self) -> Iterator[Runs[Plan]]:
        if self._closed:
            raise RsbdaliError("the loader is closed: make another one")
        start = time.perf_counter()
        if self._executor is None:
            self._executor = self._open()
        try:
            yield self._executor
        except BaseException:  # wherever it came from, queue and executor may disagree on what is under way
            self._drop()
            raise
        finally:
            self.wait_s += time.perf_counter() - start

    def _drop(self) -> None:
        self._jobs.clear()
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.close()

    def _drop_stale(self, executor: Runs[Plan], batch_index: int) -> None:
        while self._jobs and self._jobs[0].batch_index != batch_index:
            if self._jobs[0].result is None:
                executor.collect()
            self._jobs.popleft()

    def _fill(self, executor: Runs[Plan], batch_index: int) -> None:
        following = self._jobs[-1].batch_index + 1 if self._jobs else batch_index
        while len(self._jobs) < self._depth and (plan := self._make(following)) is not None:
            executor.submit(plan)
            self._jobs.append(_Job(following, plan))
            following += 1
