"""What the loader asks of an executor: plans in, batches of pixels out, first in first out.

Executors still open when the interpreter ends are closed here (`close_at_exit`), before DALI's own exit handler comes:
a worker whose pipeline DALI takes away under its hands would make itself a new one, and DALI complains about that at
the end of an otherwise fine program.
"""

import atexit
import weakref
from typing import Protocol

import numpy as np
import nvidia.dali  # noqa: F401 - handlers run last in, first out: DALI's must be there before ours
import torch

from rsbdali.plan.planner import BatchPlan


class DecodeFailure(RuntimeError):
    """A batch did not decode and is lost; batches submitted after it are unaffected and come in order."""


class ImageSource(Protocol):
    """The part of `rsbdali.data.index.ImageIndex` that the pipelines use."""

    width_N: np.ndarray
    height_N: np.ndarray

    def __len__(self) -> int: ...

    @property
    def has_files(self) -> bool:
        """Whether images are files, to be read by `source_path`; else they come by `read_bytes`."""
        ...

    def source_path(self, i: int) -> str:
        """Path of the file that decodes to the RGB pixels of image i."""
        ...

    def read_bytes(self, i: int) -> np.ndarray:
        """What decodes to the RGB pixels of image i: uint8, shape (length,). From any thread."""
        ...

    def fetch_ahead(self, sample_N: np.ndarray) -> None:
        """These images will be read soon."""
        ...


class Executor(Protocol):
    """Carries out plans in the background.

    Attributes:
        rows: most rows a plan may have.
    """

    rows: int

    def submit(self, plan: BatchPlan) -> None:
        """Queue one batch; the work starts at once, in the background."""
        ...

    def collect(self) -> torch.Tensor:
        """Wait for the oldest batch submitted.

        Returns:
            uint8, shape (N, H, W, 3), on the executor's device, rows in the plan's order.

        Raises:
            DecodeFailure: an image of this batch did not decode.
        """
        ...

    def close(self) -> None:
        """Free threads and buffers; batches not yet collected are dropped. Tensors handed out stay valid."""
        ...


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
