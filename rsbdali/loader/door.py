"""Checked before every batch: the process that made the loader, one thread at a time, no mode of the caller's.

* A forked child has a loader's queues and none of the threads that serve them: it would wait for ever.
* Threads that share a loader take turns.
* A tensor made in the caller's `torch.inference_mode()` could not be written, nor trained on, outside of it; and as
  batches are prefetched, some of the next epoch are made in it.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch

from rsbdali.errors import RsbdaliError

ONE_EACH = "make one in each process (state_dict() and load_state_dict() take its place along)"


class NotPicklableError(RsbdaliError, TypeError):
    """A loader holds threads, so it cannot be pickled or copied; a TypeError, as Python raises for a lock."""


class Door:
    """Guards one loader."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a signal handler may close the loader in the middle of a batch

    @property
    def is_forked(self) -> bool:
        """Whether this process is a forked child of the one that made the loader."""
        return os.getpid() != self._pid

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The loader's inside, for one thread.

        Raises:
            RsbdaliError: this is a forked child.
        """
        if self.is_forked:
            raise RsbdaliError(f"this loader was made in process {self._pid}, and its threads are there: {ONE_EACH}")
        with self._lock, torch.inference_mode(mode=False):
            yield


class NotPicklable:
    """For loaders: pickle and copy say what to do instead."""

    def __reduce__(self) -> NoReturn:
        raise NotPicklableError(f"a {type(self).__name__} cannot be pickled or copied, it has threads: {ONE_EACH}")
