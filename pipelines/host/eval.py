"""The CPU's executor for evaluation: decode, resize and crop each image, equal to timm and Pillow to the bit."""

import numpy as np
import torch

from rsbdali.pipelines.eval import border_color, eval_geometry
from rsbdali.pipelines.executor import DecodedBatch, ImageSource
from rsbdali.pipelines.host.resize import find_resize
from rsbdali.pipelines.host.resize_and_pad import resize_and_pad
from rsbdali.pipelines.host.workers import Job, Workers
from rsbdali.plan.randaugment import BICUBIC, BILINEAR
from rsbdali.recipe import Recipe


class HostEvalExecutor:
    """Batches for evaluation at the recipe's test size, crop share and filter; arguments as of `EvalExecutor`."""

    def __init__(
        self, index: ImageSource, recipe: Recipe, *, rows: int, device: torch.device, num_threads: int
    ) -> None:
        self._index, self._recipe, self.pixels = index, recipe, "the host executor"
        self._workers = Workers(index, rows=rows, size=recipe.test_size, device=device, num_threads=num_threads)

    def submit(self, sample_N: np.ndarray) -> None:
        """Queue some images (rows of the index)."""
        height_N, width_N = (
            side_N[sample_N].astype(np.int32) for side_N in (self._index.height_N, self._index.width_N)
        )
        recipe = self._recipe
        resized_N2, offset_N2 = eval_geometry(width_N, height_N, recipe.test_size, recipe.crop_pct, recipe.crop_mode)
        interp = BICUBIC if recipe.interpolation == "bicubic" else BILINEAR
        resize, size_N2, start_N2 = find_resize(), resized_N2.astype(int).tolist(), offset_N2.tolist()
        fill = border_color(recipe)

        def write(row: int, image_HWC: np.ndarray, _: tuple[int, int], out_HWC: np.ndarray) -> None:
            height, width, _ = image_HWC.shape
            where = {"size": tuple(size_N2[row]), "offset": tuple(start_N2[row])}
            resize_and_pad(resize, image_HWC, (0, 0, height, width), out_HWC, interp, fill=fill, **where)

        whole_N4 = np.stack([np.zeros_like(height_N), np.zeros_like(width_N), height_N, width_N], axis=1)
        rows_N = [np.array([row]) for row in range(len(sample_N))]
        self._workers.submit(Job(sample_N, whole_N4, rows_N, write))

    def collect(self) -> DecodedBatch:
        """The oldest batch (see `pipelines.executor.Executor`)."""
        return self._workers.collect()

    def close(self) -> None:
        """End the workers; what is not collected is dropped."""
        self._workers.close()
