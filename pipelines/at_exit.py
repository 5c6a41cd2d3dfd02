"""Close what is still open when the interpreter ends, before DALI's own exit handler does.

A worker whose pipeline DALI takes away under its hands would make itself a new one, and DALI complains about that at
the end of an otherwise fine program.
"""

import atexit
import weakref
from typing import Protocol

import nvidia.dali  # noqa: F401 - handlers run last in, first out: DALI's must be there before ours


class Closable(Protocol):
    """Something with threads or buffers of its own."""

    def close(self) -> None:
        """Give them up; a second time does nothing."""


_open: weakref.WeakSet[Closable] = weakref.WeakSet()


def close_at_exit(thing: Closable) -> None:
    """Have `thing` closed at the interpreter's end if it still lives then; this does not keep it alive."""
    _open.add(thing)


@atexit.register
def _close_all() -> None:
    for thing in list(_open):
        thing.close()
