"""The training step as CUDA graphs: the host starts three graphs a step instead of some thousand kernels.

    steps 1 to 3    as they are, on the stream of the captures: libraries and autotuners settle
    step 4          captured as it comes: first pass, further passes (gradients add up), update; then replayed
    from there on   rows are copied into the captured input, and the graphs replayed

Each step is a real one: nothing is warmed up at the cost of weights or statistics. The loader, the averaged weights and
the reading of the loss stay outside. Captures tolerate that other threads (the loader's) use the GPU meanwhile.

Drop path and dropout (A1 and A2) drop what they would without graphs: a captured kernel reads seed and offset from the
device, torch writes there before each replay what the GPU's generator has by then, and the step seeds that generator
before each pass (`model.reseed`). So a replay must come after its own reseeding, and nothing may draw in between.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any, Protocol

import torch

from rsbdali.loader.batch import TrainBatch
from rsbdali.ops.lamb import Lamb
from rsbdali.ops.lamb_launch import KernelStep
from rsbdali.training.step import StepResult, TrainStep

PLAIN_STEPS = 3
INPUTS = ("images", "label_N", "partner_label_N", "lam_N")


class Recording(Protocol):
    """Captured work. `out` is what it returned, filled anew by each replay."""

    out: Any

    def replay(self) -> None:
        """Do the work."""


class Recorder(Protocol):
    """Captures work without doing it."""

    def aside(self) -> AbstractContextManager[None]:
        """Where work runs that will be captured later."""

    def record(self, work: Callable[[], Any]) -> Recording:
        """Capture it."""


class _CudaRecording:
    def __init__(self, graph: torch.cuda.CUDAGraph, out: Any) -> None:
        self._graph, self.out = graph, out

    def replay(self) -> None:
        self._graph.replay()


class CudaRecorder:
    """CUDA graphs that share one stream and one pool of memory, so they have to be replayed in their order of capture.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The captures' stream; what comes behind on the caller's stream waits for it."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], Any]) -> Recording:
        """Capture `work` into a graph."""
        graph = torch.cuda.CUDAGraph()
        # thread_local: what the loader's threads do on the GPU is no part of the capture and no reason to end it
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            out = work()
        return _CudaRecording(graph, out)


class CudaGraphTrainStep(TrainStep):
    """`TrainStep`, captured once and replayed. All slices of all groups must have one size.

    Args:
        *args: as `TrainStep`; the optimizer must be our `Lamb`.
        recorder: captures; made for the device when None.
        **kwargs: as `TrainStep`.
    """

    def __init__(self, *args: Any, recorder: Recorder | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self.optimizer, Lamb)
        self._lamb: Lamb = self.optimizer
        self._recorder: Recorder = CudaRecorder(self.device) if recorder is None else recorder
        self._plain_left = PLAIN_STEPS
        self._inputs: Any = None
        self._passes: dict[str, Recording] = {}
        self._captured_update: tuple[Recording, KernelStep | None] | None = None
        self._is_first = True

    def __call__(
        self, groups: Iterable[TrainBatch], *, update: int, flags: Callable[[], Iterable[float]] = tuple
    ) -> StepResult | None:
        """As `TrainStep.__call__`."""
        if self._plain_left == 0:
            return super().__call__(groups, update=update, flags=flags)
        with self._recorder.aside():
            result = super().__call__(groups, update=update, flags=flags)
        self._plain_left -= 1
        return result

    def _clear_gradients(self) -> None:
        self._is_first = True
        if "first" not in self._passes:  # else its replay writes them anew, where they are
            super()._clear_gradients()

    def _pass(self, batch: TrainBatch, rows: slice) -> torch.Tensor:
        if self._plain_left:
            return super()._pass(batch, rows)
        self._fill(batch, rows)
        name = "first" if self._is_first else "further"
        self._is_first = False
        if name not in self._passes:
            passed = super()._pass
            self._passes[name] = self._recorder.record(lambda: passed(self._inputs, slice(None)))
        self._passes[name].replay()
        loss: torch.Tensor = self._passes[name].out
        return loss

    def _fill(self, batch: TrainBatch, rows: slice) -> None:
        """Copy the rows to where the captured pass reads them."""
        parts = {name: getattr(batch, name)[rows] for name in INPUTS}
        if self._inputs is None:
            self._inputs = SimpleNamespace(**{name: part.clone() for name, part in parts.items()})
        for name, part in parts.items():
            getattr(self._inputs, name).copy_(part)

    def _apply(self) -> None:
        if self._plain_left:
            super()._apply()
            return
        if self._captured_update is None or self._captured_update[1] is not self._lamb.kernels:
            self._lamb.prepare()
            self._captured_update = self._recorder.record(super()._apply), self._lamb.kernels
        self._lamb.send_rates()
        self._captured_update[0].replay()
