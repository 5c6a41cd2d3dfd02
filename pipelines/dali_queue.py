"""Drive one DALI pipeline as a queue: arrays in by `submit`, torch tensors out by `collect`, in order.

A row whose image cannot be read never enters DALI. Where DALI does not decode a batch, it names one row and not all:
each row is then decoded once by itself, from Pillow's copy where DALI refuses it, and the good ones run once more
together. The pipeline stays as it is: with the dynamic executor an error costs the one batch.
"""

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from nvidia.dali import pipeline_def
from nvidia.dali.pipeline import Pipeline
from torch.utils.dlpack import from_dlpack

from rsbdali.errors import DataError
from rsbdali.pipelines.encoded import PendingImages
from rsbdali.pipelines.executor import close_at_exit
from rsbdali.pipelines.forks import abandoned_in_children, check_process, is_abandoned
from rsbdali.pipelines.gpu_stream import Lent

# one entry per input of the graph, images first: a list of arrays, then arrays with the batch first; or `PendingImages`
# and the last entries: it becomes the first ones when it has been read (`PendingImages.fields`)
Fields = Sequence[Any]

CALLBACK = "dl_tensor_python_function"  # names the operator in DALI's messages


class _DecodeError(RuntimeError):
    """DALI could not carry out a batch; batches submitted after it are unaffected and come in order."""


@dataclass
class _Job:
    """A batch: its inputs, the rows of it that DALI sees, why it does not see the others, and how it ended."""

    fields: Fields
    pending: PendingImages | None
    rows: int
    bad: dict[int, str] = field(default_factory=dict)
    outputs: list[torch.Tensor] | None = None
    error: RuntimeError | DataError | None = None

    @property
    def kept_N(self) -> np.ndarray:
        return np.delete(np.arange(self.rows), list(self.bad))


class PipelineQueue:
    """A DALI pipeline whose inputs are handed over batch by batch.

    DALI's own prefetching is not used (a queue depth of 1): with the dynamic executor any number of iterations may be
    scheduled ahead, and the caller alone decides how many.

    Args:
        define: called as `define(source)` inside the pipeline, returns the output node or nodes; `source` is what
            `fn.external_source(source=…, batch=True)` calls for each batch.
        rows: most rows of a batch.
        device: where the batches come out.
        num_threads: DALI's worker threads.
        conditionals: let `if` in the graph act sample by sample.
    """

    def __init__(
        self,
        define: Callable[[Callable[[], Fields]], Any],
        *,
        rows: int,
        device: torch.device,
        num_threads: int,
        conditionals: bool = False,
    ) -> None:
        check_process()
        self.rows, self.device = rows, device
        queue: deque[Fields] = deque()
        self._queue = queue
        if device.type == "cuda":
            torch.cuda.init()  # before DALI's threads hand tensors to torch
        self._waiting: deque[_Job] = deque()  # submitted, but their images are still being read
        self._started: deque[_Job] = deque()  # in DALI, or done
        self._lent = Lent(device) if device.type == "cuda" else None
        # DALI refuses a builtin method as source, hence the lambda, which must not know `self`: a circle of references
        # would put the end of a dropped runner off; conditionals make `if` in the graph act per sample
        self._pipe: Pipeline | None = pipeline_def(define, enable_conditionals=conditionals)(
            lambda: queue.popleft(),
            batch_size=rows,
            num_threads=num_threads,
            device_id=_device_id(device),
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        self._pipe.build()
        abandoned_in_children(self._pipe)
        self._stop = weakref.finalize(self, _stop, self._pipe, self._waiting, self._started, self.device, self._lent)
        self._stop.atexit = False  # too late there
        close_at_exit(self)

    def submit(self, fields: Fields) -> None:
        """Queue one batch of inputs and start on it, or once its images have been read."""
        assert self._pipe is not None, "closed"
        pending = fields[0] if isinstance(fields[0], PendingImages) else None
        self._waiting.append(_Job(fields, pending, len(fields[0])))
        self._start_ready()

    def collect(self) -> tuple[list[torch.Tensor], np.ndarray, dict[int, str]]:
        """The graph's outputs for the oldest batch, without a copy; on a GPU the current stream waits for DALI's work.

        Returns:
            The outputs, none where no row is left; the K rows that they hold, in order; why the others are missing.
            On a GPU the outputs are lent: read them on the current stream, before the next call.

        Raises:
            DataError: the source of the images does not answer.
            RuntimeError: a call from the graph into Python failed, or good images do not decode together.
        """
        self._start_ready()
        if not self._started:
            self._start(self._waiting.popleft())
        job = self._started.popleft()
        self._finish(job)
        if isinstance(job.error, _DecodeError):
            self._decode_singly(job)
        if job.error is not None:
            raise job.error
        assert job.outputs is not None
        if self._lent is not None:
            self._lent.lend(job.outputs)
        return job.outputs, job.kept_N, job.bad

    def _start_ready(self) -> None:
        """Hand over to DALI what has been read, in order."""
        while self._waiting and (self._waiting[0].pending is None or self._waiting[0].pending.ready()):
            self._start(self._waiting.popleft())

    def _start(self, job: _Job) -> None:
        self._started.append(job)
        if job.pending is not None:
            try:
                read = job.pending.fields()
            except DataError as error:
                job.error = error
                return
            job.bad = {row: image for row, image in enumerate(read[0]) if isinstance(image, str)}
            job.fields = [*read, *job.fields[1:]]
        self._schedule(job)

    def _schedule(self, job: _Job) -> None:
        kept_N, job.outputs, job.error = job.kept_N, None, None
        if not len(kept_N):
            job.outputs = []
            return
        assert self._pipe is not None, "closed"
        self._queue.append([_rows(field, kept_N, job.rows) for field in job.fields])
        self._pipe.schedule_run()

    def _finish(self, job: _Job) -> None:
        """Wait for a batch that is the oldest in DALI."""
        if job.outputs is not None or job.error is not None:
            return
        assert self._pipe is not None, "closed"
        try:
            job.outputs = _outputs(self._pipe, self.device)
        except RuntimeError as error:
            job.error = error if CALLBACK in str(error) else _DecodeError(str(error))  # a callback's fault is ours

    def _decode_singly(self, job: _Job) -> None:
        """Find the rows that do not decode, and run the others together."""
        for behind in self._started:  # DALI's queue is first in, first out
            self._finish(behind)
        job.fields = [list(job.fields[0]), *job.fields[1:]]
        for row in job.kept_N.tolist():
            reason = None if self._decodes(job, row) else self._try_copy(job, row)
            if reason is not None:
                job.bad[row] = reason
        self._schedule(job)
        self._finish(job)

    def _try_copy(self, job: _Job, row: int) -> str | None:
        """Replace an image that DALI does not decode by Pillow's copy of it; else say why that cannot be."""
        copy = "does not decode" if job.pending is None else job.pending.copy(row)
        if isinstance(copy, str):
            return copy
        for rows, value in zip(job.fields, copy, strict=False):  # the image, and its window if it has one
            rows[row] = value
        return None if self._decodes(job, row) else "Pillow's copy of it does not decode"

    def _decodes(self, job: _Job, row: int) -> bool:
        others = {other: "" for other in range(job.rows) if other != row}
        single = _Job(job.fields, None, job.rows, others)
        self._schedule(single)
        self._finish(single)
        if single.error is not None and not isinstance(single.error, _DecodeError):
            raise single.error
        return single.error is None

    def close(self) -> None:
        """Free the pipeline; batches not yet collected are finished first and dropped."""
        self._pipe = None
        self._stop()


def _outputs(pipe: Pipeline, device: torch.device) -> list[torch.Tensor]:
    """Wait for the oldest batch in DALI."""
    outputs = pipe.share_outputs(cuda_stream=torch.cuda.current_stream(device) if device.type == "cuda" else None)
    # the dynamic executor gives every batch memory of its own, so the tensors outlive the release
    tensors = [_as_torch(output.as_tensor(), device) for output in outputs]
    pipe.release_outputs()
    return tensors


def _stop(pipe: Pipeline, waiting: deque[_Job], started: deque[_Job], device: torch.device, lent: Lent | None) -> None:
    """Finish what is under way and what reads its memory, before the pipeline goes.

    Left to its destructor, one with calls into Python under way waits for them with the interpreter's lock in its hand.
    """
    waiting.clear()
    if lent is not None:
        lent.close()
    if isinstance(threading.current_thread(), threading._DummyThread):
        # called by Python's collector in a thread of DALI's, which cannot wait for itself
        threading.Thread(target=_drain, args=(pipe, started, device), daemon=True).start()
    else:
        _drain(pipe, started, device)


def _drain(pipe: Pipeline, started: deque[_Job], device: torch.device) -> None:
    while started:
        job = started.popleft()
        if job.outputs is None and job.error is None and not is_abandoned(pipe):
            with contextlib.suppress(RuntimeError):  # its error concerns no batch any more
                _outputs(pipe, device)


def _as_torch(output: Any, device: torch.device) -> torch.Tensor:
    """DALI's tensor as torch's, without a copy; it holds DALI's while it lives.

    On a GPU not by DLPack: DALI takes back a buffer lent that way in a thread that waits for the whole device.
    """
    if device.type == "cuda":
        return torch.as_tensor(output, device=device)  # by __cuda_array_interface__
    return from_dlpack(output)


def _rows(field: Any, kept_N: np.ndarray, rows: int) -> Any:
    """Some rows of an input, as DALI takes them: a list, or a dense array."""
    if isinstance(field, list):
        return [field[row] for row in kept_N.tolist()]
    return np.ascontiguousarray(field if len(kept_N) == rows else field[kept_N])


def _device_id(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index
