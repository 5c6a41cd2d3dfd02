"""A batch's encoded images, read by threads while earlier batches are decoded: a promise that the queue redeems."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from rsbdali.errors import UnreadableImage
from rsbdali.pipelines.executor import ImageSource

READ_ROWS = 16  # images that a thread reads in a row


class PendingImages:
    """Encoded images that are being read.

    Args:
        index: the images.
        sample_N: rows of the index.
        parts: what reads them, in order.
    """

    def __init__(
        self, index: ImageSource, sample_N: np.ndarray, parts: Sequence["Future[list[np.ndarray | str]]"]
    ) -> None:
        self._index, self._sample_N, self._parts = index, sample_N, parts

    def __len__(self) -> int:
        return len(self._sample_N)

    def ready(self) -> bool:
        """Whether all have been read, or reading has failed."""
        return all(part.done() for part in self._parts)

    def arrays(self) -> list[np.ndarray | str]:
        """The images, uint8 each, or the reason why one cannot be had; waits for them.

        Raises:
            DataError: the source does not answer.
        """
        return [array for part in self._parts for array in part.result()]

    def copy(self, row: int) -> np.ndarray | str:
        """Pillow's copy of one image, or why Pillow does not decode it."""
        try:
            return self._index.read_copy(int(self._sample_N[row]))
        except UnreadableImage as error:
            return str(error)


class EncodedInput:
    """Reads the images of batches.

    Args:
        index: the images.
        num_threads: threads that read.
    """

    def __init__(self, index: ImageSource, num_threads: int) -> None:
        self._index = index
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="rsbdali-read")

    def __call__(self, sample_N: np.ndarray) -> PendingImages:
        """Start to read the images of a batch."""
        self._index.fetch_ahead(sample_N)
        parts = [sample_N[i : i + READ_ROWS].tolist() for i in range(0, len(sample_N), READ_ROWS)]
        futures = [self._pool.submit(read_images, self._index, part) for part in parts]
        return PendingImages(self._index, sample_N, futures)

    def close(self) -> None:
        """End the threads; what is not read yet never will be."""
        self._pool.shutdown(cancel_futures=True)


def read_images(index: ImageSource, samples: Sequence[int]) -> list[np.ndarray | str]:
    """Encoded images that DALI may see, or the reason why one cannot be had."""
    return [_read(index, i) for i in samples]


def _read(index: ImageSource, i: int) -> np.ndarray | str:
    try:
        return index.read_bytes(i)
    except UnreadableImage as error:
        return str(error)
