"""A batch's encoded images as input of a graph: paths that DALI reads, or bytes that threads here read.

Bytes are read while earlier batches are decoded: the input is a promise, which the runner redeems once it is kept.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from rsbdali.pipelines.executor import ImageSource

READ_ROWS = 16  # images that a thread reads in a row


class PendingImages:
    """Encoded images that are being read.

    Args:
        parts: what reads them, in order.
    """

    def __init__(self, parts: Sequence["Future[list[np.ndarray]]"]) -> None:
        self._parts = parts

    def ready(self) -> bool:
        """Whether all have been read, or one has failed to be."""
        return all(part.done() for part in self._parts)

    def arrays(self) -> list[np.ndarray]:
        """The images, uint8 each; waits for them.

        Raises:
            DataError: what reading one of them raised.
        """
        return [array for part in self._parts for array in part.result()]


class EncodedInput:
    """Makes the input of a batch.

    Args:
        index: the images.
        num_threads: threads that read bytes; none are made where DALI reads files.
    """

    def __init__(self, index: ImageSource, num_threads: int) -> None:
        self._index = index
        self._pool = None if index.has_files else ThreadPoolExecutor(num_threads, thread_name_prefix="rsbdali-read")

    def __call__(self, sample_N: np.ndarray) -> list[np.ndarray] | PendingImages:
        """Source paths as uint8 arrays, the form that `fn.io.file.read` takes; or the images to come."""
        if self._pool is None:
            return path_arrays(self._index, sample_N)
        self._index.fetch_ahead(sample_N)
        parts = [sample_N[i : i + READ_ROWS].tolist() for i in range(0, len(sample_N), READ_ROWS)]
        return PendingImages([self._pool.submit(self._read, part) for part in parts])

    def close(self) -> None:
        """End the threads; what is not read yet never will be."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _read(self, samples: list[int]) -> list[np.ndarray]:
        return [self._index.read_bytes(i) for i in samples]


def path_arrays(index: ImageSource, sample_N: np.ndarray) -> list[np.ndarray]:
    """Source paths of some images as uint8 arrays."""
    return [np.frombuffer(index.source_path(int(i)).encode("utf-8", "surrogateescape"), np.uint8) for i in sample_N]
