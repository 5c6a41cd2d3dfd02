"""Readers with threads of their own, in forked children, which have none of these threads: they begin anew there."""

import os
import weakref
from typing import Protocol


class Restarts(Protocol):
    """A reader that can begin anew."""

    def restart(self) -> None:
        """Forget threads, locks and what is under way, without waiting for any of it."""


_readers: "weakref.WeakSet[Restarts]" = weakref.WeakSet()


def restarted_in_children(reader: Restarts) -> None:
    """Let a reader begin anew in the processes that are forked from here on."""
    _readers.add(reader)


def _restart_all() -> None:
    for reader in list(_readers):
        reader.restart()


os.register_at_fork(after_in_child=_restart_all)
