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

from rsbdali.pipelines.at_exit import close_at_exit
from rsbdali.pipelines.executor import DecodeFailure, ImageSource

Fields = Sequence[Any]  # one entry per input of the graph: an array with the batch first, or a list of arrays


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
        self._pending = 0  # batches submitted and not collected
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
        """Queue one batch of inputs and start on it."""
        assert self._pipe is not None, "closed"
        # DALI takes no strided arrays
        self._queue.append([f if isinstance(f, list) else np.ascontiguousarray(f) for f in fields])
        self._pipe.schedule_run()
        self._pending += 1

    def collect(self) -> list[torch.Tensor]:
        """The graph's outputs for the oldest batch, without a copy; on a GPU the current stream waits for DALI's work.

        Raises:
            DecodeFailure: DALI could not carry out this batch.
            RuntimeError: a call from the graph into Python failed.
        """
        assert self._pipe is not None, "closed"
        self._pending -= 1
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
        while self._pipe is not None and self._pending:
            with contextlib.suppress(RuntimeError):
                self.collect()
        self._pipe = None


def _device_id(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def path_arrays(index: ImageSource, sample_N: np.ndarray) -> list[np.ndarray]:
    """Source paths of some images as uint8 arrays, the form that `fn.io.file.read` takes."""
    return [np.frombuffer(index.source_path(int(i)).encode("utf-8", "surrogateescape"), np.uint8) for i in sample_N]
