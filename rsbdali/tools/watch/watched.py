"""`rsbdali.watch`: wraps a loop's loader and takes the time."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from rsbdali.errors import RsbdaliError
from rsbdali.tools.watch.diagnosis import Report, diagnose
from rsbdali.tools.watch.machine import Machine
from rsbdali.tools.watch.record import Record
from rsbdali.tools.watch.traits import rows_of, traits_of

T = TypeVar("T")
OWN = ("_loader", "_machine", "_say", "_probe", "_records", "_running", "_count")


def watch(
    loader: Iterable[T], *, probe: int = 0, say: Callable[[str], None] | None = None, machine: Machine | None = None
) -> "Watched[T]":
    """The loader, watched: the same batches, `len` and attributes; at the end of each pass one line says who waited.

    A loop over it needs no change. It costs microseconds a batch (`python -m rsbdali.bench.watch_overhead`). With a GPU
    the times are the GPU's, by events without a wait.

    Args:
        loader: anything that can be iterated: a torch `DataLoader`, an iterator of DALI, a loader of rsbdali, …
        probe: give the last whole batch of the first pass so many times more at its end, to measure the step without
            the loader. These are steps of training like any other: use it to measure, not in a run that counts.
        say: gets the line at the end of a pass; None: standard error, of rank 0 alone (RANK in the environment).
        machine: where times and counts come from; None: this machine.

    Returns:
        A wrapper of the loader; its `report()` judges what was seen so far, at any time.

    Raises:
        RsbdaliError: `loader` cannot be iterated, or `probe` is no number of steps.
    """
    if not hasattr(type(loader), "__iter__"):
        raise RsbdaliError(f"watch: {type(loader).__name__} cannot be iterated, expected a loader of batches")
    if not isinstance(probe, int) or probe < 0:
        raise RsbdaliError(f"watch: probe={probe!r}: expected a number of steps, 0 for none")
    return Watched(loader, probe=probe, say=say or _to_standard_error, machine=machine or Machine())


def _to_standard_error(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"rsbdali watch: {line}\n")


class Watched(Generic[T]):
    """A wrapper of a loader (see `watch`): attributes that it does not have itself are the loader's, set there too."""

    def __init__(self, loader: Any, *, probe: int, say: Callable[[str], None], machine: Machine) -> None:
        self._loader, self._probe, self._say, self._machine = loader, probe, say, machine
        self._records: list[Record] = []  # of the first pass and the newest
        self._count = 0
        self._running: Pass[T] | None = None

    def __repr__(self) -> str:
        return f"watch({self._loader!r})"

    def __iter__(self) -> "Pass[T]":
        self._count += 1
        record = Record(self._count, traits_of(self._loader), self._machine)
        # not the pass itself: a loop that breaks drops its iterator, and the workers behind it end
        self._records = [*self._records[:1], record]
        return Pass(iter(self._loader), record, probe=self._probe if self._count == 1 else 0, done=self._say_report)

    def __next__(self) -> T:
        """The next batch of a loader that is its own iterator, as DALI's are; other loaders have none."""
        if not hasattr(type(self._loader), "__next__"):
            raise TypeError(f"'{type(self._loader).__name__}' object is not an iterator")
        if self._running is None or self._running.ended:
            self._running = iter(self)
        return next(self._running)

    def report(self) -> Report:
        """What the newest pass has shown so far.

        Raises:
            RsbdaliError: no pass has begun.
        """
        if not self._records:
            raise RsbdaliError("watch: nothing to report, no pass over the loader has begun")
        first, newest = self._records[0], self._records[-1]
        return diagnose(newest.figures(), None if first is newest else first.figures())

    def _say_report(self) -> None:
        self._say(str(self.report()))

    def __len__(self) -> int:
        return len(self._loader)

    def __bool__(self) -> bool:
        return bool(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name in OWN:  # not there yet: while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self._loader, name, value)

    def __enter__(self) -> Self:
        self._loader.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> Any:
        return self._loader.__exit__(kind, error, at)


class Pass(Iterator[T]):
    """One pass over a loader.

    Args:
        iterator: of the loader.
        record: gets its times.
        probe: steps on a kept batch at the end.
        done: called once at the end of the pass.

    Attributes:
        ended: whether it has come to its end.
    """

    def __init__(self, iterator: Iterator[T], record: Record, *, probe: int, done: Callable[[], None]) -> None:
        self._iterator, self._record, self._done = iterator, record, done
        self._probe = probe
        self._kept: T | None = None
        self.ended = False

    def __next__(self) -> T:
        if self.ended:
            raise StopIteration
        self._record.ask()
        if self._record.replays:
            return self._replay()
        try:
            batch = next(self._iterator)
        except StopIteration:
            return self._replay()
        self._record.got(batch, self._iterator)
        if self._probe and (self._record.given == 1 or rows_of(batch) == rows_of(self._kept)):
            self._kept = batch  # a whole one: the last of a pass may be smaller
        return batch

    def _replay(self) -> T:
        """The kept batch once more, or the end."""
        if self._kept is not None and self._record.replays < self._probe:
            self._record.got_again()
            return self._kept
        self.ended, self._kept = True, None
        self._done()
        raise StopIteration
