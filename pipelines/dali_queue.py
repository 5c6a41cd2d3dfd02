"""Drive one DALI pipeline as a queue: arrays in by `submit`, torch tensors out by `collect`, in order."""

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import pipeline_def
from nvidia.dali.pipeline import Pipeline
from torch.utils.dlpack import from_dlpack

from rsbdali.errors import DataError, UnreadableImage
from rsbdali.pipelines.encoded import PendingImages
from rsbdali.pipelines.executor import DecodeFailure, close_at_exit

# one entry per input of the graph: an array with the batch first, a list of arrays, or `PendingImages`
Fields = Sequence[Any]


CALLBACK = "dl_tensor_python_function"  # names the operator in DALI's messages


class Runner:
    """A DALI pipeline whose inputs are handed over batch by batch.

    DALI's own prefetching is not used (a queue depth of 1): with the dynamic executor any number of iterations may be
    scheduled ahead, and the caller alone decides how many.

    Args:
        define: called as `define(source)` inside the pipeline, returns the output node or nodes; `source` is what
            `fn.external_source(source=…, batch=True)` calls for each batch.
        rows: most rows of a batch.
        device: where the batches come out.
        num_threads: DALI's worker threads.
    """

    def __init__(
        self, define: Callable[[Callable[[], Fields]], Any], *, rows: int, device: torch.device, num_threads: int
    ) -> None:
        self.rows, self.device = rows, device
        self._queue: deque[Fields] = deque()
        if device.type == "cuda":
            torch.cuda.init()  # before DALI's threads hand tensors to torch
        self._waiting: deque[Fields] = deque()  # submitted, but their images are still being read
        self._started: deque[DataError | None] = deque()  # batches in DALI (None), or that could not be read
        # DALI refuses a builtin method as source, hence the lambda; conditionals make `if` in the graph act per sample
        self._pipe: Pipeline | None = pipeline_def(define, enable_conditionals=True)(
            lambda: self._queue.popleft(),
            batch_size=rows,
            num_threads=num_threads,
            device_id=_device_id(device),
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        self._pipe.build()
        close_at_exit(self)

    def submit(self, fields: Fields) -> None:
        """Queue one batch of inputs and start on it, or once its images have been read."""
        assert self._pipe is not None, "closed"
        self._waiting.append(fields)
        self._start_ready()

    def _start_ready(self) -> None:
        """Hand over to DALI what is ready, in order."""
        while self._waiting and all(f.ready() for f in self._waiting[0] if isinstance(f, PendingImages)):
            self._start_next()

    def _start_next(self) -> None:
        assert self._pipe is not None, "closed"
        try:
            self._queue.append([_ready(field) for field in self._waiting.popleft()])
        except DataError as error:
            self._started.append(error)
            return
        self._pipe.schedule_run()
        self._started.append(None)

    def collect(self) -> list[torch.Tensor]:
        """The graph's outputs for the oldest batch, without a copy; on a GPU the current stream waits for DALI's work.

        Raises:
            DecodeFailure: DALI could not carry out this batch, or an image of it could not be read.
            DataError: the source of the images does not answer.
            RuntimeError: a call from the graph into Python failed.
        """
        assert self._pipe is not None, "closed"
        self._start_ready()
        if not self._started:
            self._start_next()
        unread = self._started.popleft()
        if isinstance(unread, UnreadableImage):
            raise DecodeFailure(str(unread)) from unread
        if unread is not None:
            raise unread
        on_gpu = self.device.type == "cuda"
        try:
            outputs = self._pipe.share_outputs(cuda_stream=torch.cuda.current_stream(self.device) if on_gpu else None)
        except RuntimeError as error:
            if CALLBACK in str(error):  # a fault of ours, not of an image
                raise
            raise DecodeFailure(str(error)) from error
        # the dynamic executor gives every batch memory of its own, so the tensors outlive the release
        tensors = [from_dlpack(output.as_tensor()) for output in outputs]
        self._pipe.release_outputs()
        return tensors

    def close(self) -> None:
        """Free the pipeline; batches not yet collected are finished first and dropped.

        (Left to its destructor, a pipeline with calls into Python under way waits for them with the interpreter's lock
        in its hand.)
        """
        self._waiting.clear()
        while self._pipe is not None and self._started:
            with contextlib.suppress(RuntimeError, DataError):
                self.collect()
        self._pipe = None


def _ready(field: Any) -> Any:
    if isinstance(field, PendingImages):
        return field.arrays()
    return field if isinstance(field, list) else np.ascontiguousarray(field)  # DALI takes no strided arrays


def _device_id(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index
