"""The CPU's executor: decode, resize, flip and augment each row of a plan, equal to Pillow and timm to the bit.

An image that a batch holds several times (repeated augmentation) is decoded once, in the window that covers all its
crops.
"""

from dataclasses import replace

import numpy as np
import torch

from rsbdali.pipelines.executor import DecodedBatch, ImageSource
from rsbdali.pipelines.host.augment import find_augment
from rsbdali.pipelines.host.resize import find_resize
from rsbdali.pipelines.host.resize_and_pad import resize_and_pad
from rsbdali.pipelines.host.workers import Job, Workers
from rsbdali.plan.augmentation import fill_color
from rsbdali.plan.planner import BatchPlan
from rsbdali.recipe import Recipe


class HostExecutor:
    """Carries out plans on the CPU by `num_threads` worker threads (see `pipelines.executor.Executor`).

    Args:
        index: the images.
        recipe: gives the size of the output, the fill color, and the crop mode.
        rows: most rows of one plan.
        device: where batches are handed out; a GPU gets them by a copy from pinned memory.
        num_threads: threads that work.
        augment: flip and apply RandAugment too; else the rows are only resized.
        chunk: most images of a call to DALI (`Workers`).
    """

    def __init__(
        self,
        index: ImageSource,
        recipe: Recipe,
        *,
        rows: int,
        device: torch.device,
        num_threads: int,
        augment: bool = True,
        chunk: int | None = None,
    ) -> None:
        self.rows, self._augment, self._fill = rows, augment, fill_color(recipe)
        self._keeps_ratio = recipe.train_crop_mode != "rrc"
        self.pixels = "the host executor"
        self._workers = Workers(
            index, rows=rows, size=recipe.train_size, device=device, num_threads=num_threads, chunk=chunk
        )

    def submit(self, plan: BatchPlan) -> None:
        """Queue one batch."""
        if self._augment:
            self._workers.submit(plan_job(plan, self._fill, keeps_ratio=self._keeps_ratio))
        else:
            self._workers.submit(resize_job(plan))

    def collect(self) -> DecodedBatch:
        """The oldest batch (see `Executor`)."""
        return self._workers.collect()

    def close(self) -> None:
        """End the workers; what is not collected is dropped."""
        self._workers.close()


def plan_job(plan: BatchPlan, fill: tuple[int, int, int], *, keeps_ratio: bool) -> Job:
    """The images of a plan, and how a row is made: resize its crop, flip it, apply its layers of ops."""
    augment = find_augment()
    op_NL, arg_NL, op_interp_NL = (getattr(plan, name).tolist() for name in ("op_NL", "arg_NL", "op_interp_NL"))
    resized = keep_ratio_job(plan) if keeps_ratio else resize_job(plan, mirror_N=plan.flip_N)

    def write(row: int, window_HWC: np.ndarray, start: tuple[int, int], out_HWC: np.ndarray) -> None:
        resized.write(row, window_HWC, start, out_HWC)
        augment(out_HWC, op_NL[row], arg_NL[row], op_interp_NL[row], fill)

    return replace(resized, write=write)


def resize_job(plan: BatchPlan, mirror_N: np.ndarray | None = None) -> Job:
    """The images of a plan, and how a row is made without augmentation: resize its crop, mirror it if asked to."""
    rows_M, window_M4 = _by_image(plan)
    resize = find_resize()
    # lists, which Python reads faster one by one
    crop_N4, interp_N = plan.crop_N4.tolist(), plan.interp_N.tolist()
    mirrored = [False] * len(plan) if mirror_N is None else mirror_N.tolist()

    def write(row: int, window_HWC: np.ndarray, start: tuple[int, int], out_HWC: np.ndarray) -> None:
        y, x, h, w = crop_N4[row]
        resize(window_HWC, (y - start[0], x - start[1], h, w), out_HWC, interp_N[row], mirror=mirrored[row])

    return Job(plan.sample_N[[rows[0] for rows in rows_M]], window_M4, rows_M, write)


def keep_ratio_job(plan: BatchPlan) -> Job:
    """The images of a plan, and how a row is made: resize it, cut the output out of it or pad it, flip it."""
    rows_M, window_M4 = _by_image(plan)
    resize, mirrored = find_resize(), plan.flip_N.tolist()
    size_N2, offset_N2, interp_N = plan.resized_N2.tolist(), plan.offset_N2.tolist(), plan.interp_N.tolist()

    def write(row: int, image_HWC: np.ndarray, _: tuple[int, int], out_HWC: np.ndarray) -> None:
        where = {"size": tuple(size_N2[row]), "offset": tuple(offset_N2[row]), "mirror": mirrored[row]}
        resize_and_pad(resize, image_HWC, (0, 0, *image_HWC.shape[:2]), out_HWC, interp_N[row], fill=None, **where)

    return Job(plan.sample_N[[rows[0] for rows in rows_M]], window_M4, rows_M, write)


def _by_image(plan: BatchPlan) -> tuple[list[np.ndarray], np.ndarray]:
    """The rows of each of the M images in a plan, and the smallest window (y, x, h, w) that holds their crops."""
    order_N = np.argsort(plan.sample_N, kind="stable")
    first_M = np.flatnonzero(np.diff(plan.sample_N[order_N], prepend=-1))
    crop_N4 = plan.crop_N4[order_N]
    start_M2 = np.minimum.reduceat(crop_N4[:, :2], first_M)
    stop_M2 = np.maximum.reduceat(crop_N4[:, :2] + crop_N4[:, 2:], first_M)
    return np.split(order_N, first_M[1:]), np.concatenate([start_M2, stop_M2 - start_M2], axis=1)
