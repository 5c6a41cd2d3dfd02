"""SIGINT, SIGTERM and SIGUSR1 ask a run to finish its step, save and end; a second one ends the process at once.

A run that ended so exits with 128 + the signal's number, as shells say it: 130, 143, 138 (SIGUSR1 is what schedulers
send some time before they take a machine away).
"""

import signal
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Context manager that catches the stop signals. Outside the main thread it catches none."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        try:
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        except ValueError:  # only the main thread may; whoever runs us in another one handles signals itself
            self._before = {}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def as_row(self) -> list[float]:
        """One number per signal of STOP_SIGNALS, 1 where it came: a vector that ranks can sum."""
        return [float(number == self.signal) for number in STOP_SIGNALS]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for stop in STOP_SIGNALS:  # the next one ends the process
            signal.signal(stop, signal.SIG_DFL)


def from_row(row: list[float]) -> signal.Signals | None:
    """The first signal that any rank got, of a summed `StopRequest.as_row`."""
    return next((number for number, count in zip(STOP_SIGNALS, row, strict=True) if count), None)
