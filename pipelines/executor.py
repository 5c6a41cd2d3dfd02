"""What the loader asks of an executor: plans in, batches of pixels out, first in first out.

Executors still open when the interpreter ends are closed here (`close_at_exit`), before DALI's own exit handler comes:
a worker whose pipeline DALI takes away under its hands would make itself a new one, and DALI complains about that at
the end of an otherwise fine program.
"""

import atexit
import weakref
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import nvidia.dali  # noqa: F401 - handlers run last in, first out: DALI's must be there before ours
import torch

from rsbdali.data.intervals import Intervals
from rsbdali.data.sources.base import ByteRange
from rsbdali.distributed.devices import to_device
from rsbdali.plan.planner import BatchPlan


class DecodedBatch(NamedTuple):
    """Pixels of one plan.

    Attributes:
        images_NHWC: uint8, shape (N, H, W, 3), on the executor's device, rows in the plan's order.
        bad: row → why neither DALI nor Pillow decodes its image; the pixels of these rows mean nothing.
    """

    images_NHWC: torch.Tensor
    bad: dict[int, str]


def scatter(
    parts: Sequence[torch.Tensor],
    rows_per_part: Sequence[np.ndarray],
    bad: dict[int, str],
    *,
    size: tuple[int, int],
    device: torch.device,
) -> DecodedBatch:
    """A batch from parts of its rows.

    Args:
        parts: uint8 (K, H, W, 3) each; none where all rows are bad.
        rows_per_part: int (K,) for each part, the rows that it holds; a row in two of them has the same pixels in both.
        bad: the rows in no part.
        size: H and W.
        device: of the batch.
    """
    if not bad and len(parts) == 1:
        # a GPU's parts are lent by DALI (`PipelineQueue.collect`): a copy costs less than to watch over who reads them
        return DecodedBatch(parts[0].clone() if device.type == "cuda" else parts[0], bad)
    rows = 1 + max([*bad, *(int(row) for part in rows_per_part for row in part)])
    images_NHWC = torch.zeros((rows, *size, 3), dtype=torch.uint8, device=device)
    for part_KHWC, rows_K in zip(parts, rows_per_part, strict=False):
        images_NHWC.index_copy_(0, to_device(np.asarray(rows_K), device), part_KHWC)
    return DecodedBatch(images_NHWC, bad)


class ImageSource(Protocol):
    """The part of `rsbdali.data.index.ImageIndex` that the pipelines use."""

    width_N: np.ndarray
    height_N: np.ndarray

    @property
    def intervals(self) -> object | None:
        """Not None where some images can be read in part."""
        ...

    def __len__(self) -> int: ...

    def read_bytes(self, i: int) -> np.ndarray:
        """An encoded image that DALI may see: uint8, shape (length,). From any thread; see `ImageIndex`."""
        ...

    def intervals_of(self, i: int) -> Intervals | None:
        """The restart intervals of image i; None where it is read as a whole."""
        ...

    def read_parts(self, i: int, parts: Sequence[ByteRange], out_B: np.ndarray) -> None:
        """Read some parts of the stored bytes of image i, one behind the other."""
        ...

    def read_copy(self, i: int) -> np.ndarray:
        """Pillow's RGB copy of image i, for what DALI does not decode: uint8, shape (length,)."""
        ...

    def fetch_ahead(self, sample_N: np.ndarray, parts: Iterable[Sequence[ByteRange]] | None = None) -> None:
        """These images will be read soon, or the given parts of each; see `ImageIndex`."""
        ...


class Executor(Protocol):
    """Carries out plans in the background.

    Attributes:
        rows: most rows a plan may have.
        pixels: what makes them, as text; where it is another one, they are not the same to the bit.
    """

    rows: int
    pixels: str

    def submit(self, plan: BatchPlan) -> None:
        """Queue one batch; the work starts at once, in the background."""
        ...

    def collect(self) -> DecodedBatch:
        """Wait for the oldest batch submitted.

        Raises:
            DataError: the source of the images does not answer.
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
