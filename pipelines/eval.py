"""The evaluation graph: timm's `transforms_imagenet_eval` (resize, center crop) without the normalization.

Sizes and offsets are integers computed here from the index, as torchvision and timm compute them: DALI's own
`resize_shorter` with `crop` shifts the image by a fraction of a pixel.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn

from rsbdali.pipelines.dali_queue import Fields, PipelineQueue
from rsbdali.pipelines.decode import decode, filter_codes, gpu_settings, resize, said_load
from rsbdali.pipelines.encoded import EncodedInput
from rsbdali.pipelines.executor import DecodedBatch, ImageSource, scatter
from rsbdali.plan.keep_ratio import center_offset, keep_ratio
from rsbdali.plan.randaugment import BICUBIC, BILINEAR
from rsbdali.recipe import Recipe


class EvalExecutor:
    """Batches for evaluation at the recipe's test size, crop share and filter.

    Args:
        index: where the images are, and how large.
        recipe: gives `test_img_size`, `crop_pct`, `crop_mode` and `interpolation`.
        rows: most rows of a batch.
        device: where the graph decodes and computes.
        num_threads: DALI's worker threads.
        hw_decoder_load: see `gpu_settings`.
    """

    def __init__(
        self,
        index: ImageSource,
        recipe: Recipe,
        *,
        rows: int,
        device: torch.device,
        num_threads: int,
        hw_decoder_load: float | None = None,
    ) -> None:
        self.index, self.recipe, self.rows, self.device = index, recipe, rows, device
        self.pixels = f"DALI on {device.type}{said_load(hw_decoder_load)}"
        self._filter = BICUBIC if recipe.interpolation == "bicubic" else BILINEAR
        where = "gpu" if device.type == "cuda" else "cpu"
        define = eval_graph(
            size=recipe.test_size,
            device=where,
            settings=gpu_settings(index, hw_decoder_load),
            fill=border_color(recipe),
        )
        self._input = EncodedInput(index, num_threads)
        self._queue = PipelineQueue(define, rows=rows, device=device, num_threads=num_threads)

    def submit(self, sample_N: np.ndarray) -> None:
        """Queue some images (rows of the index); at most `rows` of them."""
        assert 0 < len(sample_N) <= self.rows, f"{len(sample_N)} images, the graph was built for 1 to {self.rows}"
        sizes = self.index.width_N[sample_N], self.index.height_N[sample_N]
        recipe = self.recipe
        resized_N2, offset_N2 = eval_geometry(*sizes, recipe.test_size, recipe.crop_pct, recipe.crop_mode)
        filters_N = filter_codes(np.full(len(sample_N), self._filter))
        self._queue.submit([self._input(sample_N), resized_N2, offset_N2, filters_N])

    def collect(self) -> DecodedBatch:
        """The oldest batch (see `pipelines.executor.Executor`)."""
        outputs, kept_N, bad = self._queue.collect()
        return scatter(outputs, [kept_N], bad, size=self.recipe.test_size, device=self.device)

    def close(self) -> None:
        """Free DALI's threads and buffers."""
        self._queue.close()
        self._input.close()


def eval_geometry(
    width_N: np.ndarray, height_N: np.ndarray, size: tuple[int, int], crop_pct: float, crop_mode: str = "center"
) -> tuple[np.ndarray, np.ndarray]:
    """Size after the resize and offset of the center crop (torchvision's `Resize`, timm's `ResizeKeepRatio`).

    center: a square target resizes the shorter side to floor(size / crop_pct), the longer one truncated; any other
    target resizes until both sides cover (floor(H / crop_pct), floor(W / crop_pct)), rounded. squash: to that size,
    whatever the aspect ratio. border: until the longer side fits, the rest is padded.

    Returns:
        resized_N2 float32 (h, w), whole numbers; offset_N2 int32 (y, x), negative where padding comes first.
    """
    target_h, target_w = (math.floor(side / crop_pct) for side in size)
    if crop_mode != "center":
        resized_N2 = keep_ratio(width_N, height_N, (target_h, target_w), longest=True)
        if crop_mode == "squash":
            resized_N2[:] = target_h, target_w
        return resized_N2.astype(np.float32), center_offset(resized_N2, size)
    # int64: a product of two int32 sides could overflow
    sides_N2 = np.stack([height_N, width_N], axis=1).astype(np.int64)
    if target_h == target_w:
        short_N1 = sides_N2.min(axis=1, keepdims=True)
        resized_N2 = np.where(sides_N2 == short_N1, target_h, (target_h * sides_N2 / short_N1).astype(np.int64))
    else:
        ratio_N1 = np.minimum(sides_N2[:, :1] / target_h, sides_N2[:, 1:] / target_w)
        resized_N2 = np.rint(sides_N2 / ratio_N1).astype(np.int64)
    # crop_pct <= 1, so the resized image covers the crop and torchvision's padding of small images never happens
    offset_N2 = np.rint((resized_N2 - np.array(size)) / 2).astype(np.int32)
    return resized_N2.astype(np.float32), offset_N2


def border_color(recipe: Recipe) -> tuple[int, int, int] | None:
    """Color of the padding, the mean in 8 bits; None where no crop mode pads."""
    if recipe.crop_mode != "border":
        return None
    red, green, blue = (round(255 * share) for share in recipe.mean)
    return red, green, blue


def eval_graph(
    *,
    size: tuple[int, int],
    device: str,
    settings: Mapping[str, Any] = MappingProxyType({}),
    fill: tuple[int, int, int] | None = None,
) -> Callable[[Callable[[], Fields]], Any]:
    """The graph as a function of its source (`PipelineQueue`); for `device` and `settings` see `decode`.

    `fill`: color outside the resized image, where crops may reach there.
    """
    outside: dict[str, Any] = {} if fill is None else {"out_of_bounds_policy": "pad", "fill_values": fill}

    def define(source: Callable[[], Fields]) -> Any:
        encoded, resized, offset, filters = fn.external_source(source=source, num_outputs=4, batch=True)
        images = resize(decode(encoded, device=device, settings=settings), resized, filters)
        return fn.slice(images, start=offset, shape=list(size), axes=(0, 1), **outside)

    return define
