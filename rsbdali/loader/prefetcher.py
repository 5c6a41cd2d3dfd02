"""Keeps an executor's queue full, in order, and mends batches that do not decode.

The loader above knows what comes when; the executor below knows how to make it. Between them stands a queue of jobs:

    tick 41   tick 42   tick 43        tick: running number of a batch of this rank, across epochs
    plan      plan      plan           plan: what the executor was told to make
    (done)    (running) (queued)

A jump (another epoch, a resume) leaves strays in the queue; they are collected and dropped.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from rsbdali.pipelines.executor import DecodeFailure

Plan = TypeVar("Plan")
PlanIn = TypeVar("PlanIn", contravariant=True)


class Runs(Protocol[PlanIn]):
    """What a feed needs of an executor: a FIFO of plans in, image batches out."""

    def submit(self, plan: PlanIn) -> None:
        """Queue one batch."""

    def collect(self) -> torch.Tensor:
        """The oldest batch, or `DecodeFailure`."""


@dataclass
class _Job(Generic[Plan]):
    tick: int
    plan: Plan
    result: torch.Tensor | DecodeFailure | None = None


class Feed(Generic[Plan]):
    """Batches by tick, `depth` of them in flight.

    Args:
        executor: makes the batches.
        make: the plan of a tick, or None past the last one.
        rows: `rows(plan, index_array)` is the plan of some rows, for finding the bad one.
        mend: `mend(plan, bad_rows)` is a plan without those images.
        depth: batches in flight.
    """

    def __init__(
        self,
        executor: Runs[Plan],
        *,
        make: Callable[[int], Plan | None],
        rows: Callable[[Plan, np.ndarray], Plan],
        mend: Callable[[Plan, list[int]], Plan],
        depth: int,
    ) -> None:
        self._executor, self._make, self._rows, self._mend, self._depth = executor, make, rows, mend, depth
        self._jobs: deque[_Job[Plan]] = deque()
        self.wait_s = 0.0  # seconds that callers of `get` were blocked

    def get(self, tick: int, size: Callable[[Plan], int]) -> tuple[Plan, torch.Tensor]:
        """The plan and images of one tick; later ticks are queued behind it."""
        start = time.perf_counter()
        self._drop_strays(tick)
        self._fill(tick)
        job = self._jobs[0]
        result = job.result if job.result is not None else self._collect()
        plan = job.plan
        if isinstance(result, DecodeFailure):
            plan, result = self._repair(plan, size)
        self._jobs.popleft()
        self._fill(tick + 1)
        self.wait_s += time.perf_counter() - start
        return plan, result

    def _drop_strays(self, tick: int) -> None:
        while self._jobs and self._jobs[0].tick != tick:
            if self._jobs[0].result is None:
                self._collect()
            self._jobs.popleft()

    def _fill(self, tick: int) -> None:
        following = self._jobs[-1].tick + 1 if self._jobs else tick
        while len(self._jobs) < self._depth and (plan := self._make(following)) is not None:
            self._executor.submit(plan)
            self._jobs.append(_Job(following, plan))
            following += 1

    def _collect(self) -> torch.Tensor | DecodeFailure:
        try:
            return self._executor.collect()
        except DecodeFailure as failure:
            return failure

    def _run(self, plan: Plan) -> torch.Tensor | DecodeFailure:
        """One plan through the executor by itself; the jobs behind are collected and kept first, as it is a FIFO."""
        for job in list(self._jobs)[1:]:
            if job.result is None:
                job.result = self._collect()
        self._executor.submit(plan)
        return self._collect()

    def _repair(self, plan: Plan, size: Callable[[Plan], int]) -> tuple[Plan, torch.Tensor]:
        while True:
            bad = self._bad_rows(plan, np.arange(size(plan)))
            plan = self._mend(plan, bad)  # raises once too many images are bad
            if not size(plan):
                return plan, torch.empty(0, dtype=torch.uint8)
            result = self._run(plan)
            if not isinstance(result, DecodeFailure):
                return plan, result

    def _bad_rows(self, plan: Plan, row_N: np.ndarray) -> list[int]:
        """Rows that do not decode, by halving: a single bad one costs about as much as two batches."""
        if not isinstance(self._run(self._rows(plan, row_N)), DecodeFailure):
            return []
        if len(row_N) == 1:
            return [int(row_N[0])]
        middle = len(row_N) // 2
        return self._bad_rows(plan, row_N[:middle]) + self._bad_rows(plan, row_N[middle:])
