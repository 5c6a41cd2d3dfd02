"""The training graph: decode, crop, resize, every number from the plan; four stock operators of DALI.

`GraphExecutor` runs it on the CPU or on a GPU (decoding included); no number is drawn here.

    bytes, window ──> decode ──┬─> crop ──> resize ──> rows of repeat 1
                              └─> …                    rows of repeat 2, …

There is one branch, unless the recipe says `aug_repeats_mode: decode_once`: then each image is
decoded once and its `aug_repeats` rows are made from it.

Flip and RandAugment come behind it (`augmented.py`). With `augment` the graph makes them itself, as 443 nodes more and
with calls into Python: exact as well, slower, and kept to compare with.
"""

from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn

from rsbdali.errors import RecipeError
from rsbdali.pipelines.dali_queue import Fields, PipelineQueue
from rsbdali.pipelines.decode import decode_window, filter_codes, gpu_settings, resize, said_load
from rsbdali.pipelines.encoded import EncodedInput
from rsbdali.pipelines.executor import DecodedBatch, ImageSource, scatter
from rsbdali.pipelines.randaugment import LAYER_FIELDS, apply_randaugment, layer_fields
from rsbdali.plan.augmentation import fill_color, num_layers
from rsbdali.plan.planner import BatchPlan
from rsbdali.plan.randaugment import FILL_RGB
from rsbdali.plan.shared_decodes import covering_windows, share_decodes
from rsbdali.recipe import Recipe

WINDOW_FIELDS = 3  # of `PendingImages`: encoded image, start and shape of the window to decode
CROP_FIELDS = 2  # start and shape of a crop within the window, where rows share one


class GraphExecutor:
    """Executes plans as one DALI graph.

    Args:
        index: where the images are.
        recipe: gives the training size, the RandAugment layers, and whether decoded images are shared.
        rows: most rows of a plan.
        device: where the graph decodes and computes.
        num_threads: DALI's worker threads.
        roi: decode only the window needed of each image (see `decode_window`).
        augment: flip and apply RandAugment too.
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
        roi: bool,
        augment: bool = False,
        hw_decoder_load: float | None = None,
    ) -> None:
        self.index, self.recipe, self.rows, self.device = index, recipe, rows, device
        if augment and fill_color(recipe) != FILL_RGB:
            raise RecipeError("executor=dali-exact fills with ImageNet's mean only: use another executor")
        self.layers = num_layers(recipe) if augment else None
        self.repeats = recipe.aug_repeats if recipe.aug_repeats > 1 and recipe.aug_repeats_mode == "decode_once" else 1
        decoded = f"{'regions' if roi else 'whole images'}{said_load(hw_decoder_load)}"
        self.pixels = f"the graph executor on {device.type}, decoding {decoded}"
        define = train_graph(
            size=recipe.train_size,
            layers=self.layers,
            repeats=self.repeats,
            device="gpu" if device.type == "cuda" else "cpu",
            roi=roi,
            settings=gpu_settings(index, hw_decoder_load),
        )
        self._input = EncodedInput(index, num_threads)
        self._queue = PipelineQueue(define, rows=rows, device=device, num_threads=num_threads, conditionals=augment)
        self._rows: deque[np.ndarray] = deque()  # rows_UK of each batch under way

    def submit(self, plan: BatchPlan) -> None:
        """Queue one plan; at most `rows` rows."""
        assert 0 < len(plan) <= self.rows, f"{len(plan)} rows, the graph was built for 1 to {self.rows}"
        rows_UK = share_decodes(plan.sample_N, self.repeats) if self.repeats > 1 else np.arange(len(plan))[:, None]
        window_U4 = covering_windows(plan.crop_N4, rows_UK)
        fields: list[Any] = [self._input(plan.sample_N[rows_UK[:, 0]], window_U4)]
        for rows_U in rows_UK.T:
            part = plan.rows(rows_U)
            if self.repeats > 1:
                fields += [part.crop_N4[:, :2] - window_U4[:, :2], part.crop_N4[:, 2:]]
            fields.append(filter_codes(part.interp_N))
            if self.layers is not None:
                fields.append(part.flip_N.astype(np.int32))
                fields += layer_fields(part, layers=self.layers, size=self.recipe.train_size)
        self._rows.append(rows_UK)
        self._queue.submit(fields)

    def collect(self) -> DecodedBatch:
        """The oldest batch (see `pipelines.executor.Executor`)."""
        rows_UK = self._rows.popleft()
        parts, kept_U, bad_decodes = self._queue.collect()
        bad = {row: reason for u, reason in bad_decodes.items() for row in rows_UK[u].tolist()}
        return scatter(parts, list(rows_UK[kept_U].T), bad, size=self.recipe.train_size, device=self.device)

    def close(self) -> None:
        """Free DALI's threads and buffers."""
        self._queue.close()
        self._input.close()
        self._rows.clear()


def train_graph(
    *,
    size: tuple[int, int],
    repeats: int,
    device: str,
    roi: bool,
    settings: Mapping[str, Any] = MappingProxyType({}),
    layers: int | None = None,
) -> Callable[[Callable[[], Fields]], Any]:
    """The graph as a function of its source (see `PipelineQueue`); it has `repeats` outputs.

    Args:
        size: (H, W) of the output.
        repeats: rows made of one decoded image.
        device: 'cpu' or 'gpu'.
        roi: see `decode_window`.
        settings: see `decode_window`.
        layers: of RandAugment, where the graph flips and applies it; None where it does neither.
    """
    crop = CROP_FIELDS if repeats > 1 else 0
    per_repeat = crop + 1 + (0 if layers is None else 1 + LAYER_FIELDS * layers)

    def define(source: Callable[[], Fields]) -> Any:
        fields = fn.external_source(source=source, num_outputs=WINDOW_FIELDS + per_repeat * repeats, batch=True)
        encoded, start, shape = fields[:WINDOW_FIELDS]
        windows = decode_window(encoded, start, shape, device=device, roi=roi, settings=settings)
        outputs = []
        for first in range(WINDOW_FIELDS, len(fields), per_repeat):
            mine = fields[first : first + per_repeat]
            # with one repeat the window is the crop
            images = fn.slice(windows, start=mine[0], shape=mine[1], axes=(0, 1)) if repeats > 1 else windows
            images = resize(images, size, mine[crop])
            if layers is not None:
                images = fn.flip(images, horizontal=mine[crop + 1])
                images = apply_randaugment(images, mine[crop + 2 :], size=size, device=device)
            outputs.append(images)
        return tuple(outputs)

    return define
