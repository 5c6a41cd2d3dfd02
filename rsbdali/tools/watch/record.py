"""What is taken down in one pass over a loader, and kept when its iterator is gone."""

import sys
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np

from rsbdali.tools.watch.figures import PassFigures
from rsbdali.tools.watch.machine import Counters, Machine
from rsbdali.tools.watch.timeline import GpuTimeline, HostTimeline
from rsbdali.tools.watch.traits import Traits, batches_ready, is_pageable, rows_of, worker_ids

LOOK_S = 1.0  # seconds between two looks at /proc
LONG_WAIT_S = 1e-3  # below it nothing is asked of the loader: asking would cost more than it shows


class Record:
    """Times and counts of one pass, from `iter()` on.

    Args:
        number: of the pass, from 1.
        traits: of the loader.
        machine: gives times and counts.

    Attributes:
        given: batches so far.
        replays: steps on a kept batch so far.
    """

    def __init__(self, number: int, traits: Traits, machine: Machine) -> None:
        self._number, self._traits, self._machine = number, traits, machine
        self._begun, self._start_s = machine.clock(), 0.0
        self._host = HostTimeline(machine.clock, machine.cpu_clock)
        self._gpu: GpuTimeline | None = None
        self._gpu_from = 0  # batch that the GPU's times begin with
        self._ready, self._rows = array("l"), array("l")
        self._workers: list[int] = []
        self._looks: list[Counters] = []  # the first and the newest
        self._pageable = False
        self.given = self.replays = 0

    def ask(self) -> None:
        """The loop asks for a batch."""
        now = self._host.ask()
        if self._gpu is None and (make_event := _event_maker()) is not None:
            self._gpu, self._gpu_from = GpuTimeline(make_event), self.given
        self._mark()
        if self._looks and not self.replays and now - self._looks[-1].at >= LOOK_S:
            self._look()

    def got(self, batch: Any, iterator: Any) -> None:
        """It gets one of the iterator's."""
        self._host.got()
        self._mark()
        self.given += 1
        is_long = self._traits.takes_turns and self._host.wait_s[-1] >= LONG_WAIT_S
        self._ready.append(batches_ready(iterator) if is_long else 0)
        if (rows := rows_of(batch)) is not None:
            self._rows.append(rows)
        if self.given == 1:
            self._begin(batch, iterator)

    def got_again(self) -> None:
        """It gets the kept one."""
        self._host.got()
        self._mark()
        self.replays += 1

    def _begin(self, batch: Any, iterator: Any) -> None:
        """With the first batch: the workers have started, and what a batch is can be seen."""
        self._start_s = self._machine.clock() - self._begun
        self._workers = worker_ids(iterator)
        self._pageable = self._gpu is not None and is_pageable(batch)
        self._look()

    def _look(self) -> None:
        self._looks = [*self._looks[:1], self._machine.counters(self._workers)]

    def _mark(self) -> None:
        if self._gpu is not None:
            self._gpu.mark()

    def figures(self) -> PassFigures:
        """What was seen so far."""
        wait_N, step_N, on_gpu = self._times()
        end = min(self.given, len(wait_N))
        wait_s, cpu_s = (sum(values[1 : self.given]) for values in (self._host.wait_s, self._host.wait_cpu_s))
        return PassFigures(
            number=self._number,
            given=self.given,
            start_s=self._start_s,
            wait_N=wait_N[1:end],
            step_N=step_N[1:end],
            ready_N=np.array(self._ready[1:end]),
            wait_cores=cpu_s / wait_s if wait_s > 0 else 0.0,
            replay_R=step_N[self.given + 1 :],  # the first one warms up
            rows=sum(self._rows) / len(self._rows) if self._rows else None,
            on_gpu=on_gpu,
            pageable=self._pageable,
            traits=self._traits,
            usage=self._machine.usage(*self._looks) if len(self._looks) == 2 else None,
        )

    def _times(self) -> tuple[np.ndarray, np.ndarray, bool]:
        """Waits and steps as far as both are known: the GPU's where it has taken half of them down by now."""
        if self._gpu is not None:
            self._gpu.read()
            if self._gpu_from == 0 and 2 * len(self._gpu.step_s) > len(self._host.step_s):
                return *_paired(self._gpu), True
        return *_paired(self._host), False


def _paired(timeline: HostTimeline | GpuTimeline) -> tuple[np.ndarray, np.ndarray]:
    count = len(timeline.step_s)  # the last wait may be one whose step goes on
    return np.array(timeline.wait_s[:count]), np.array(timeline.step_s)


def _event_maker() -> Callable[[], Any] | None:
    """What makes events, where this program uses a GPU through torch; it is not started here."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return lambda: torch.cuda.Event(enable_timing=True)
