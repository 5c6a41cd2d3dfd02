"""Seconds that a loop waits for its batches and seconds that it works on them, by the host's clock and by a GPU's.

ask ──wait 0──> got ──step 0──> ask ──wait 1──> got ──step 1──> …
"""

from array import array
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol


class Event(Protocol):
    """The part of `torch.cuda.Event(enable_timing=True)` that is used."""

    def record(self) -> Any:
        """Take the time once the GPU has come so far on torch's current stream."""

    def query(self) -> bool:
        """Whether it has."""
        ...

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from this event to another one; both have passed."""
        ...


class HostTimeline:
    """Times of one pass by the host's clock.

    Args:
        clock: seconds, as `time.perf_counter`.
        cpu_clock: CPU seconds of this process, as `time.process_time`.

    Attributes:
        wait_s: seconds between asking for a batch and getting it.
        step_s: seconds between getting a batch and asking for the next one.
        wait_cpu_s: CPU seconds that all threads of this process had during each wait.
    """

    def __init__(self, clock: Callable[[], float], cpu_clock: Callable[[], float]) -> None:
        self._clock, self._cpu_clock = clock, cpu_clock
        self.wait_s, self.step_s, self.wait_cpu_s = array("d"), array("d"), array("d")
        self._asked = self._got = self._cpu = 0.0

    def ask(self) -> float:
        """The loop asks for a batch; the time."""
        self._asked = self._clock()
        if len(self.wait_s) > len(self.step_s):
            self.step_s.append(self._asked - self._got)
        self._cpu = self._cpu_clock()
        return self._asked

    def got(self) -> None:
        """The batch is there."""
        self.wait_cpu_s.append(self._cpu_clock() - self._cpu)
        self._got = self._clock()
        self.wait_s.append(self._got - self._asked)


class GpuTimeline:
    """The same by events on the GPU: how long it stood idle between a step and the next batch, and its steps.

    The host is usually ahead of the GPU. It may wait for a batch while the GPU still works, and nothing is lost: no
    time passes on the GPU between the two events of that wait. Events are read once they have passed, without a wait.

    Args:
        make_event: a new event with timing.

    Attributes:
        wait_s: seconds of the GPU between the end of a step and the arrival of the next batch.
        step_s: seconds of the GPU for each step.
    """

    def __init__(self, make_event: Callable[[], Event]) -> None:
        self._make = make_event
        self.wait_s, self.step_s = array("d"), array("d")
        self._free: list[Event] = []
        self._under_way: deque[Event] = deque()

    def mark(self) -> None:
        """At each `ask` and `got`, in turn, the first time at an `ask`."""
        event = self._free.pop() if self._free else self._make()
        event.record()
        self._under_way.append(event)
        self.read()

    def read(self) -> None:
        """Take down the times between events that have passed."""
        while len(self._under_way) > 1 and self._under_way[1].query():
            first = self._under_way.popleft()
            seconds = first.elapsed_time(self._under_way[0]) / 1e3
            (self.wait_s if len(self.wait_s) == len(self.step_s) else self.step_s).append(seconds)
            self._free.append(first)
