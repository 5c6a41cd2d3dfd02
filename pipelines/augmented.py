"""Flip and RandAugment behind an executor that decodes and resizes: as kernels on a GPU, by Pillow on a CPU."""

from collections import deque

import torch

from rsbdali.ops.randaugment import randaugment
from rsbdali.pipelines.executor import DecodedBatch, Executor
from rsbdali.pipelines.gpu_stream import SideStream
from rsbdali.plan.planner import BatchPlan


class Augmented:
    """Carries out plans (see `pipelines.executor.Executor`).

    On a GPU the batch is made on a stream of its own: while the model's step t runs there, step t + 1's images are
    resized and augmented, and neither the host nor the model's stream waits before it needs them.

    Args:
        resized: makes the images of a plan without flip and RandAugment.
        device: where `resized` hands them out.
        fill: levels of R, G and B outside the image.
    """

    def __init__(self, resized: Executor, device: torch.device, fill: tuple[int, int, int]) -> None:
        self.rows, self.pixels = resized.rows, resized.pixels
        self._resized, self._fill = resized, fill
        self._plans: deque[BatchPlan] = deque()
        self._side = SideStream(device) if device.type == "cuda" else None

    def submit(self, plan: BatchPlan) -> None:
        """Queue one plan."""
        self._plans.append(plan)
        self._resized.submit(plan)

    def collect(self) -> DecodedBatch:
        """The oldest batch."""
        if self._side is None:
            return self._augment(self._resized.collect())
        with self._side.current():
            made = self._augment(self._resized.collect())
        return DecodedBatch(self._side.hand_over(made.images_NHWC), made.bad)

    def _augment(self, batch: DecodedBatch) -> DecodedBatch:
        plan = self._plans.popleft()
        rows = plan.flip_N, plan.op_NL, plan.arg_NL, plan.op_interp_NL
        return DecodedBatch(randaugment(batch.images_NHWC, *rows, fill=self._fill), batch.bad)

    def close(self) -> None:
        """Close the executor behind."""
        self._plans.clear()
        self._resized.close()
