"""SIGINT, SIGTERM and SIGUSR1 ask a run to finish its step, save and end; a second one ends the process at once.

A run that ended so exits with 130 on SIGINT, the user's interrupt, and with 143 on the others (SIGUSR1 is what
schedulers send some time before they take a machine away).

A launcher passes signals on to processes that got them already, from a terminal or from Slurm. So what comes within
REPEAT_S of the first is taken as the same request. The second is seen by a thread: it counts even while the main
thread hangs in a collective that a lost rank will never join.
"""

import logging
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from rsbdali.distributed.launch import exit_code

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
REPEAT_S = 1.0
log = logging.getLogger(__name__)


class StopRequest:
    """Context manager that catches the stop signals. Outside the main thread it catches none.

    Args:
        says: whether to log the first one: on one rank of several.
    """

    def __init__(self, *, says: bool = True) -> None:
        self._says = says
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup_before = -1
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> "StopRequest":
        try:
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        except ValueError:  # only the main thread may; whoever runs us in another one handles signals itself
            return self
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=_watch, args=(self._pipe[0], self._says), name="signals", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._pipe is None or self._watcher is None:
            return
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._pipe[1])  # the watcher reads the end of the pipe
        self._watcher.join()
        os.close(self._pipe[0])
        self._pipe = None

    def as_row(self) -> list[float]:
        """One number per signal of STOP_SIGNALS, 1 where it came: a vector that ranks can sum."""
        return [float(number == self.signal) for number in STOP_SIGNALS]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)


def _watch(pipe: int, says: bool) -> None:
    """Read the signals' numbers as they come, log the first, and end the process at the second request."""
    first: float | None = None
    while came := os.read(pipe, 1):
        if came[0] not in STOP_SIGNALS:
            continue
        now = time.monotonic()
        if first is None:
            first = now
            if says:
                log.info("%s: stopping after this step; again to quit now", signal.Signals(came[0]).name)
        elif now - first >= REPEAT_S:
            os._exit(exit_code(signal.Signals(came[0])))


def from_row(row: list[float]) -> signal.Signals | None:
    """The first signal that any rank got, of a summed `StopRequest.as_row`."""
    return next((number for number, count in zip(STOP_SIGNALS, row, strict=True) if count), None)
