"""The CPU's executor: each worker thread reads, decodes, resizes, flips and augments whole images, cache-warm.

    submit(plan) ──> images of the batch, in chunks ──> worker: read ──> DALI decodes windows ──> resize, flip ──>
    RandAugment ──> row of the batch's buffer        (num_threads workers)             collect() <── batches in order

An image that a batch holds several times (repeated augmentation) is decoded once, in the window that covers all its
crops. Batches overlap: workers go on with the next one while the last images of one are still under way.
"""

import contextlib
import queue
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from rsbdali.errors import RsbdaliError
from rsbdali.pipelines.buffers import BufferPool
from rsbdali.pipelines.executor import DecodedBatch, ImageSource, close_at_exit
from rsbdali.pipelines.host.augment import find_augment
from rsbdali.pipelines.host.decode import WindowDecoder
from rsbdali.pipelines.host.resize import find_resize
from rsbdali.plan.planner import BatchPlan
from rsbdali.recipe import Recipe

# Images a worker decodes at a time: the cost of a call to DALI is spread, a batch still splits evenly. From 32 on DALI
# 2.4 shares out the parsing of headers among its threads, and that is where one which does not parse kills the process;
# none should come so far (`rsbdali.data.image_parser`), but a second wall costs nothing.
CHUNK = 31


@dataclass
class _Batch:
    """A batch under way; the lists are the plan's arrays, which Python reads faster one by one."""

    plan: BatchPlan
    images_NHWC: torch.Tensor
    open_chunks: int
    pixels_NHWC: np.ndarray = field(init=False)
    flip_N: list[bool] = field(init=False)
    interp_N: list[int] = field(init=False)
    op_NL: list[list[int]] = field(init=False)
    arg_NL: list[list[float]] = field(init=False)
    op_interp_NL: list[list[int]] = field(init=False)
    bad: dict[int, str] = field(default_factory=dict)
    error: BaseException | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.pixels_NHWC = self.images_NHWC.numpy()
        for name in ("flip_N", "interp_N", "op_NL", "arg_NL", "op_interp_NL"):
            setattr(self, name, getattr(self.plan, name).tolist())

    def close_chunk(self, error: BaseException | None = None) -> None:
        with self.lock:
            self.error = self.error or error
            self.open_chunks -= 1
            if self.open_chunks == 0:
                self.done.set()


@dataclass(frozen=True)
class _Chunk:
    """M images of one batch, the window to decode of each, and the rows that each of them fills."""

    batch: _Batch
    index: ImageSource
    sample_M: list[int]
    window_M4: np.ndarray
    rows: list[np.ndarray]


class HostExecutor:
    """Carries out plans on the CPU by `num_threads` worker threads (see `pipelines.executor.Executor`).

    Each worker has a DALI thread that decodes for it while it waits, so no more than `num_threads` threads work at a
    time. Pixels equal Pillow's and timm's to the bit.

    Args:
        index: the images.
        recipe: its `train_size` gives the size of the output.
        rows: most rows of one plan.
        device: where batches are handed out; a GPU gets them by a copy from pinned memory.
        num_threads: threads that work.
        prefetch: how many batches the caller means to keep submitted; nothing waits here, so it is only kept.
    """

    def __init__(
        self,
        index: ImageSource,
        recipe: Recipe,
        *,
        rows: int,
        device: torch.device,
        num_threads: int,
        prefetch: int = 2,
    ) -> None:
        self.rows, self.prefetch, self.pixels = rows, prefetch, "the host executor"
        self._index, self._device = index, torch.device(device)
        self._size = recipe.train_size
        self._pool = BufferPool((rows, *self._size, 3), torch.uint8)
        self._chunks: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        self._batches: deque[_Batch] = deque()
        self._chunk_images = max(1, min(CHUNK, -(-rows // num_threads)))
        self._workers = _start_workers(num_threads, self._chunks, self._chunk_images)
        self._close = weakref.finalize(self, _stop_workers, self._workers, self._chunks)
        close_at_exit(self)

    def submit(self, plan: BatchPlan) -> None:
        """Queue one batch."""
        assert len(plan) <= self.rows, f"{len(plan)} rows, made for {self.rows}"
        rows_by_image, window_M4 = _by_image(plan)
        parts = [slice(i, i + self._chunk_images) for i in range(0, len(window_M4), self._chunk_images)]
        batch = _Batch(plan, self._buffer(len(plan)), len(parts))
        self._batches.append(batch)
        sample_M = plan.sample_N[[image_rows[0] for image_rows in rows_by_image]]
        self._index.fetch_ahead(sample_M)
        for part in parts:
            samples = sample_M[part].tolist()
            self._chunks.put(_Chunk(batch, self._index, samples, window_M4[part], rows_by_image[part]))

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


def _by_image(plan: BatchPlan) -> tuple[list[np.ndarray], np.ndarray]:
    """The rows of each of the M images in a plan, and the smallest window (y, x, h, w) that holds their crops."""
    order_N = np.argsort(plan.sample_N, kind="stable")
    first_M = np.flatnonzero(np.diff(plan.sample_N[order_N], prepend=-1))
    crop_N4 = plan.crop_N4[order_N]
    start_M2 = np.minimum.reduceat(crop_N4[:, :2], first_M)
    stop_M2 = np.maximum.reduceat(crop_N4[:, :2] + crop_N4[:, 2:], first_M)
    return np.split(order_N, first_M[1:]), np.concatenate([start_M2, stop_M2 - start_M2], axis=1)


def _start_workers(count: int, chunks: "queue.SimpleQueue[_Chunk | None]", chunk_images: int) -> list[threading.Thread]:
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


def _stop_workers(workers: list[threading.Thread], chunks: "queue.SimpleQueue[_Chunk | None]") -> None:
    for chunk in _taken_out(chunks):
        chunk.batch.close_chunk(RsbdaliError("the loader is closed: make another one"))  # who waits for it, stops
    for _ in workers:
        chunks.put(None)
    if (
        threading.current_thread() not in workers
    ):  # where a circle of references ends, Python's collector calls from any
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
    """Read and decode a chunk, and fill its rows."""
    windows = decoder.read(chunk.index, chunk.sample_M, chunk.window_M4)
    batch, resize, augment = chunk.batch, find_resize(), find_augment()
    for window_HWC, (top, left, _, _), rows in zip(windows, chunk.window_M4.tolist(), chunk.rows, strict=True):
        for row in rows.tolist():
            if isinstance(window_HWC, str):
                batch.bad[row] = window_HWC
                continue
            y, x, h, w = batch.plan.crop_N4[row].tolist()
            box = (y - top, x - left, h, w)
            resize(window_HWC, box, batch.pixels_NHWC[row], batch.interp_N[row], mirror=batch.flip_N[row])
            augment(batch.pixels_NHWC[row], batch.op_NL[row], batch.arg_NL[row], batch.op_interp_NL[row])
