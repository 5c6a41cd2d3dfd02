"""A batch's encoded images, read by threads while earlier batches are decoded: the queue waits for them.

Where each image has a window, a seekable one is read in part (`regions.py`), and its window is moved accordingly.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from rsbdali.errors import UnreadableImage
from rsbdali.pipelines.executor import ImageSource
from rsbdali.pipelines.regions import RegionReader, fetch_ahead

READ_ROWS = 16  # images that a thread reads in a row
# images, uint8 each, or the reason why one cannot be had; int32 (K, 4), their windows in pixels of what was read
Read = tuple[list[np.ndarray | str], np.ndarray | None]


class PendingImages:
    """Encoded images that are being read.

    Args:
        index: the images.
        sample_N: rows of the index.
        window_N4: int32 (y, x, h, w), what is needed of each image, in its pixels; None: all of it.
        parts: what reads them, in order.
    """

    def __init__(
        self,
        index: ImageSource,
        sample_N: np.ndarray,
        window_N4: np.ndarray | None,
        parts: Sequence["Future[Read]"],
    ) -> None:
        self._index, self._sample_N, self._window_N4, self._parts = index, sample_N, window_N4, parts

    def __len__(self) -> int:
        return len(self._sample_N)

    def ready(self) -> bool:
        """Whether all have been read, or reading has failed."""
        return all(part.done() for part in self._parts)

    def fields(self) -> list[Any]:
        """Inputs of a graph: the images, and behind them start and shape of their windows if they have any.

        Waits for the images: uint8 (length,) each, or the reason why one cannot be had. Start (y, x) and shape (h, w)
        are int32 (N, 2) each, in pixels of the images as they were read.

        Raises:
            DataError: the source does not answer.
        """
        read = [part.result() for part in self._parts]
        images = [image for some, _ in read for image in some]
        if self._window_N4 is None:
            return [images]
        window_N4 = np.concatenate([window_K4 for _, window_K4 in read if window_K4 is not None])
        return [images, window_N4[:, :2].copy(), window_N4[:, 2:].copy()]

    def copy(self, row: int) -> list[np.ndarray] | str:
        """Pillow's copy of one whole image and its window: a row of `fields`; or why Pillow does not decode it."""
        try:
            copy = self._index.read_copy(int(self._sample_N[row]))
        except UnreadableImage as error:
            return str(error)
        return [copy] if self._window_N4 is None else [copy, self._window_N4[row, :2], self._window_N4[row, 2:]]


class EncodedInput:
    """Reads the images of batches.

    Args:
        index: the images.
        num_threads: threads that read.
    """

    def __init__(self, index: ImageSource, num_threads: int) -> None:
        self._index = index
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="rsbdali-read")

    def __call__(self, sample_N: np.ndarray, window_N4: np.ndarray | None = None) -> PendingImages:
        """Start to read the images of a batch, arguments as of `PendingImages`."""
        if window_N4 is None:
            self._index.fetch_ahead(sample_N)
        else:
            fetch_ahead(self._index, sample_N, window_N4)
        futures = []
        for start in range(0, len(sample_N), READ_ROWS):
            some = slice(start, start + READ_ROWS)
            window_K4 = None if window_N4 is None else window_N4[some]
            # a reader for each part: its memory is in use until DALI has copied it
            futures.append(self._pool.submit(RegionReader().read, self._index, sample_N[some].tolist(), window_K4))
        return PendingImages(self._index, sample_N, window_N4, futures)

    def close(self) -> None:
        """End the threads; what is not read yet never will be."""
        self._pool.shutdown(cancel_futures=True)
