"""The training graph: read, decode, crop, resize, flip, RandAugment, every number from the plan.

`GraphExecutor` runs it in DALI, on the CPU or on a GPU (decoding included); no number is drawn here.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn

from rsbdali.pipelines.decode import decode_crop, filter_codes, resize
from rsbdali.pipelines.decode_mode import DecodeMode, use_roi
from rsbdali.pipelines.executor import ImageSource
from rsbdali.pipelines.randaugment import LAYER_FIELDS, apply_randaugment, layer_fields
from rsbdali.pipelines.runner import Fields, Runner, path_arrays
from rsbdali.plan import BatchPlan
from rsbdali.policy import RandAugmentPolicy
from rsbdali.recipe import Recipe

IMAGE_FIELDS = 5  # path, crop start, crop shape, filter, flip


class GraphExecutor:
    """Executes plans as one DALI graph.

    Args:
        index: where the images are.
        recipe: gives the training size and whether there is RandAugment.
        rows: most rows of a plan.
        device: where the graph decodes and computes.
        num_threads: DALI's worker threads.
        prefetch: batches that the caller should keep submitted (DALI queues any number).
        decode: 'roi' decodes only the crop, 'full' the whole image; 'auto' is roi on the CPU, and on a GPU what a
            self-test shows to work.

    Raises:
        DeviceError: decode='roi' was asked for and this GPU cannot.
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
        decode: DecodeMode = "auto",
    ) -> None:
        self.index, self.recipe, self.rows, self.device, self.prefetch = index, recipe, rows, device, prefetch
        policy = RandAugmentPolicy.parse(recipe.aa)
        self.layers = 0 if policy is None else policy.num_layers
        self.roi = use_roi(decode, device)
        define = train_graph(
            size=recipe.train_size, layers=self.layers, device="gpu" if device.type == "cuda" else "cpu", roi=self.roi
        )
        self._runner = Runner(define, rows=rows, device=device, num_threads=num_threads)

    def submit(self, plan: BatchPlan) -> None:
        """Queue one plan; at most `rows` rows."""
        assert len(plan) <= self.rows, f"{len(plan)} rows, the graph was built for {self.rows}"
        self._runner.submit(
            image_fields(self.index, plan) + layer_fields(plan, layers=self.layers, size=self.recipe.train_size)
        )

    def collect(self) -> torch.Tensor:
        """The oldest batch: uint8, shape (N, H, W, 3), on `device`.

        Raises:
            DecodeFailure: an image of this batch did not decode.
        """
        return self._runner.collect()

    def close(self) -> None:
        """Free DALI's threads and buffers."""
        self._runner.close()


def image_fields(index: ImageSource, plan: BatchPlan) -> list[Any]:
    """The graph's inputs for decode, crop, resize and flip."""
    return [
        path_arrays(index, plan.sample_N),
        np.ascontiguousarray(plan.crop_N4[:, :2], np.int32),
        np.ascontiguousarray(plan.crop_N4[:, 2:], np.int32),
        filter_codes(plan.interp_N),
        plan.flip_N.astype(np.int32),
    ]


def train_graph(*, size: tuple[int, int], layers: int, device: str, roi: bool) -> Callable[[Callable[[], Fields]], Any]:
    """The graph as a function of its source (see `Runner`).

    Args:
        size: (H, W) of the output.
        layers: RandAugment layers, 0 for none.
        device: 'cpu' or 'gpu'.
        roi: see `decode_crop`.
    """

    def define(source: Callable[[], Fields]) -> Any:  # noqa: ANN401 - a DALI node
        count = IMAGE_FIELDS + LAYER_FIELDS * layers
        fields = fn.external_source(source=source, num_outputs=count, batch=True)
        path, start, shape, filters, flip = fields[:IMAGE_FIELDS]
        images = decode_crop(path, start, shape, device=device, roi=roi)
        images = resize(images, size, filters)
        images = fn.flip(images, horizontal=flip)
        return apply_randaugment(images, fields[IMAGE_FIELDS:], size=size, device=device)

    return define
