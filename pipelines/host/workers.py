"""Threads that read and decode images and write the rows of a batch, cache-warm: the CPU's executors share them.

    submit(Job) ──> its images, in chunks ──> worker: read ──> DALI decodes windows ──> the job writes each row ──>
    the batch's buffer            (num_threads workers)                     collect() <── batches in order

Batches overlap: workers go on with the next one while the last images of one are still under way.
"""

import contextlib
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from rsbdali.errors import RsbdaliError
from rsbdali.pipelines.buffers import BufferPool
from rsbdali.pipelines.executor import DecodedBatch, ImageSource, close_at_exit
from rsbdali.pipelines.host.augment import find_augment
from rsbdali.pipelines.host.decode import WindowDecoder
from rsbdali.pipelines.host.resize import find_resize
from rsbdali.pipelines.regions import fetch_ahead, find_splice

# Images a worker decodes at a time: the cost of a call to DALI is spread, a batch still splits evenly. From 32 on DALI
# 2.4 shares out the parsing of headers among its threads, and that is where one which does not parse kills the process;
# none should come so far (`rsbdali.data.image_parser`), but a second wall costs nothing.
CHUNK = 31


@dataclass(frozen=True)
class Job:
    """The M images of a batch of N rows.

    Attributes:
        sample_M: rows of the index.
        window_M4: int32 (y, x, h, w), the part to decode of each.
        rows_M: the rows of the batch that each image fills.
        write: makes a row of a decoded window: `write(row, window_HWC, (y, x), out_HWC)`, where (y, x) is where the
            window begins in its image. Called from several threads at once, for different rows.
    """

    sample_M: np.ndarray
    window_M4: np.ndarray
    rows_M: list[np.ndarray]
    write: Callable[[int, np.ndarray, tuple[int, int], np.ndarray], None]


@dataclass
class _Batch:
    """A batch under way."""

    images_NHWC: torch.Tensor
    open_chunks: int
    pixels_NHWC: np.ndarray = field(init=False)
    bad: dict[int, str] = field(default_factory=dict)
    error: BaseException | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.pixels_NHWC = self.images_NHWC.numpy()

    def close_chunk(self, error: BaseException | None = None) -> None:
        with self.lock:
            self.error = self.error or error
            self.open_chunks -= 1
            if self.open_chunks == 0:
                self.done.set()


@dataclass(frozen=True)
class _Chunk:
    """Some images of a job."""

    batch: _Batch
    index: ImageSource
    job: Job


class Workers:
    """`num_threads` threads that carry out jobs.

    Each has a DALI thread that decodes for it while it waits, so no more than `num_threads` threads work at a time.

    Args:
        index: the images.
        rows: most rows of one job.
        size: H and W of a row.
        device: where batches are handed out; a GPU gets them by a copy from pinned memory.
        num_threads: threads that work.
        chunk: most images of a call to DALI, at most CHUNK; None: CHUNK.
    """

    def __init__(
        self,
        index: ImageSource,
        *,
        rows: int,
        size: tuple[int, int],
        device: torch.device,
        num_threads: int,
        chunk: int | None = None,
    ) -> None:
        self._rows, self._index, self._device, self._size = rows, index, torch.device(device), size
        self._pool = BufferPool((rows, *size, 3), torch.uint8)
        self._chunks: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        self._batches: deque[_Batch] = deque()
        self._chunk_images = max(1, min(CHUNK, chunk or CHUNK, -(-rows // num_threads)))
        if index.intervals is not None:
            find_splice()  # compiled here, as all else in `_start_threads`
        self._threads = _start_threads(num_threads, self._chunks, self._chunk_images)
        self._close = weakref.finalize(self, _stop_threads, self._threads, self._chunks)
        close_at_exit(self)

    def submit(self, job: Job) -> None:
        """Queue one batch."""
        rows = sum(len(rows) for rows in job.rows_M)
        assert 0 < rows <= self._rows, f"{rows} rows, made for 1 to {self._rows}"
        starts = range(0, len(job.sample_M), self._chunk_images)
        batch = _Batch(self._buffer(rows), len(starts))
        self._batches.append(batch)
        fetch_ahead(self._index, job.sample_M, job.window_M4)
        for start in starts:
            part = slice(start, start + self._chunk_images)
            some = Job(job.sample_M[part], job.window_M4[part], job.rows_M[part], job.write)
            self._chunks.put(_Chunk(batch, self._index, some))

    def collect(self) -> DecodedBatch:
        """The oldest batch (see `Executor`)."""
        batch = self._batches.popleft()
        batch.done.wait()
        if batch.error is not None:
            raise batch.error
        return DecodedBatch(batch.images_NHWC.to(self._device, non_blocking=True), batch.bad)

    def close(self) -> None:
        """End the workers; what is not collected is dropped."""
        self._batches.clear()
        self._close()

    def _buffer(self, rows: int) -> torch.Tensor:
        if self._device.type == "cuda":  # torch's own pool of pinned memory knows when the copy has ended
            return torch.empty((rows, *self._size, 3), dtype=torch.uint8, device="cpu", pin_memory=True)
        return self._pool.take()[:rows]


def _start_threads(count: int, chunks: "queue.SimpleQueue[_Chunk | None]", chunk_images: int) -> list[threading.Thread]:
    find_resize(), find_augment()  # compiled here, once, where an error is seen
    workers = [
        threading.Thread(
            target=_work, args=(WindowDecoder(chunk_images), chunks), name=f"rsbdali-host-{i}", daemon=True
        )
        for i in range(count)
    ]
    for worker in workers:
        worker.start()
    return workers


def _stop_threads(workers: list[threading.Thread], chunks: "queue.SimpleQueue[_Chunk | None]") -> None:
    for chunk in _taken_out(chunks):
        chunk.batch.close_chunk(RsbdaliError("the loader is closed: make another one"))  # who waits for it, stops
    for _ in workers:
        chunks.put(None)
    # where a circle of references ends, Python's collector calls this from any thread
    if threading.current_thread() not in workers:
        for worker in workers:
            worker.join()


def _taken_out(chunks: "queue.SimpleQueue[_Chunk | None]") -> Iterator[_Chunk]:
    """Work that no worker has begun."""
    with contextlib.suppress(queue.Empty):
        while True:
            if (chunk := chunks.get_nowait()) is not None:
                yield chunk


def _work(decoder: WindowDecoder, chunks: "queue.SimpleQueue[_Chunk | None]") -> None:
    while (chunk := chunks.get()) is not None:
        error: BaseException | None = None
        if chunk.batch.error is None:
            try:
                _fill(decoder, chunk)
            except BaseException as raised:  # collect() raises it in the caller's thread
                error = raised
        chunk.batch.close_chunk(error)
        del chunk, error


def _fill(decoder: WindowDecoder, chunk: _Chunk) -> None:
    """Read and decode a chunk, and write its rows."""
    batch, job = chunk.batch, chunk.job
    windows = decoder.read(chunk.index, job.sample_M.tolist(), job.window_M4)
    for window_HWC, (y, x, _, _), rows in zip(windows, job.window_M4.tolist(), job.rows_M, strict=True):
        for row in rows.tolist():
            if isinstance(window_HWC, str):
                batch.bad[row] = window_HWC
            else:
                job.write(row, window_HWC, (y, x), batch.pixels_NHWC[row])
