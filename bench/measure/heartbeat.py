"""Who holds the interpreter's lock? A thread that wants it every millisecond, and notes how long it had to wait.

Python code passes the lock on every 5 ms; a longer gap is a call into C that keeps it, or the want of a free core.
"""

import threading
import time

BEAT_S = 1e-3


class Heartbeat:
    """Beats while it is entered.

    Attributes:
        longest_s: the longest time between two beats, seconds; 0 where there was not more than one.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._last_s: float | None = None
        self._beating, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        self._beating.wait()  # what comes now counts
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def note(self, now_s: float) -> None:
        """A beat, by the clock."""
        if self._last_s is not None:
            self.longest_s = max(self.longest_s, now_s - self._last_s)
        self._last_s = now_s

    def _beat(self) -> None:
        self.note(time.perf_counter())
        self._beating.set()
        while not self._stop.is_set():
            time.sleep(BEAT_S)  # the measurement: what is longer is held by another thread
            self.note(time.perf_counter())
