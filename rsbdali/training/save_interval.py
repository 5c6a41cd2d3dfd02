"""How often a run is saved besides the ends of its epochs: every so many steps, or every so much time."""

import re
import time
from dataclasses import dataclass

from rsbdali.bounded import shown
from rsbdali.errors import RsbdaliError

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Interval:
    """An interval of one of two kinds; the other one is None.

    Attributes:
        steps: optimizer steps, counted over the whole run, so that a resumed run saves at the same steps.
        seconds: wall time since the last save.
    """

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Interval":
        """Read `500steps`, `90s`, `10m` or `2h`.

        Raises:
            RsbdaliError: it is none of these, or nothing.
        """
        found = re.fullmatch(r"\s*([0-9]{1,9})\s*(steps?|[smh])\s*", text)
        if found is None or int(found[1]) == 0:
            raise RsbdaliError(
                f"--checkpoint-every {shown(text)}: expected a number of steps or a time, for example 500steps, 90s, "
                "10m or 2h"
            )
        number, unit = int(found[1]), found[2]
        return cls(steps=number) if unit.startswith("step") else cls(seconds=number * UNITS_S[unit])


class Due:
    """Says when a save is due.

    Args:
        interval: None: never.
    """

    def __init__(self, interval: Interval | None) -> None:
        self._interval = interval or Interval()
        self._saved = time.monotonic()

    def by_steps(self, updates: int) -> bool:
        """Whether one is due after this many steps of the run: the same on every rank."""
        return self._interval.steps is not None and updates % self._interval.steps == 0

    def by_time(self) -> bool:
        """Whether one is due by this process's clock."""
        return self._interval.seconds is not None and time.monotonic() - self._saved >= self._interval.seconds

    def saved(self) -> None:
        """A save was made: the time counts anew."""
        self._saved = time.monotonic()
