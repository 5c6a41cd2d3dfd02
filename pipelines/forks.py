"""DALI in forked children: they have the pipelines of their parent and none of the threads that serve them.

So a child's `del`, or its end, would wait for these threads for ever. A child therefore lets go of its parent's
pipelines, without freeing them; those of the parent are as they were. Nor can such a child make pipelines of its own:
locks of DALI's may have been held when it was forked (seen: 3 of 4 hang).
"""

import ctypes
import os
import weakref
from typing import Any

from rsbdali.errors import DeviceError

_pipes: "weakref.WeakSet[Any]" = weakref.WeakSet()
_parent: int | None = None  # of this process, if it had pipelines when it forked


def check_process() -> None:
    """Ask before a pipeline is made.

    Raises:
        DeviceError: this process was forked from one with pipelines.
    """
    if _parent is not None:
        raise DeviceError(
            f"this process was forked from process {_parent} while a loader was open there, and DALI does not work in "
            "such a child: start processes by spawn or forkserver, or before the first loader is made"
        )


def abandoned_in_children(pipe: Any) -> None:
    """Let the processes that are forked from here on let go of a DALI pipeline."""
    _pipes.add(pipe)


def is_abandoned(pipe: Any) -> bool:
    """Whether a pipeline is of a process that this one was forked from."""
    return pipe._pipe is None


def _let_go() -> None:
    global _parent
    for pipe in list(_pipes):
        if pipe._pipe is not None:
            _parent = os.getppid()
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(pipe._pipe))  # never freed
            pipe._pipe = None  # what DALI's own shutdown and destructor look at


os.register_at_fork(after_in_child=_let_go)
