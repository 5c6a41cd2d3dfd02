"""A batch of noise that is on the device, with labels and with mixing as a recipe's plans draw it."""

import dataclasses
from itertools import cycle

import numpy as np
import torch

from rsbdali.distributed.devices import to_device
from rsbdali.loader.batch import TrainBatch
from rsbdali.ops.mix import mix_normalize
from rsbdali.pipelines.buffers import BufferPool
from rsbdali.plan.planner import Planner
from rsbdali.recipe import Recipe

NUM_CLASSES = 1000
PLANS = 8  # mixup and CutMix among them
SOURCE_SIZE = 500, 375  # width and height of a usual ImageNet photograph; nothing is decoded here


def step_recipe(recipe: Recipe, rows: int) -> Recipe:
    """The recipe with one mix group of `rows` rows a step, and each image once in it."""
    return dataclasses.replace(
        recipe, global_batch_size=rows, mix_groups=1, micro_batch_size=None, aug_repeats=0, mixup_off_epoch=0
    )


class Synthetic:
    """uint8 noise as the executors deliver it, made into training batches again and again.

    Args:
        recipe: from `step_recipe`.
        device: of the batches.
        dtype: of the mixed images: autocast's, as in training.

    Attributes:
        images_NHWC: uint8 noise, (N, H, W, 3).
        label_N: int64, on the host.
    """

    def __init__(self, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> None:
        self.recipe, self.device, self.dtype = recipe, device, dtype
        rows = recipe.global_batch_size
        rng = torch.Generator().manual_seed(recipe.seed)
        shape = (rows, *recipe.train_size, 3)
        self.images_NHWC = torch.randint(256, shape, generator=rng, dtype=torch.uint8).to(device)
        self.label_N = torch.randint(NUM_CLASSES, (rows,), generator=rng).numpy()
        width, height = (np.full(rows * PLANS, side, np.int32) for side in SOURCE_SIZE)
        planner = Planner(width, height, recipe)
        self._plans = cycle([planner.group(0, step, 0) for step in range(PLANS)])
        self._pool = BufferPool(shape, dtype)

    def mixed(self) -> TrainBatch:
        """The next plan's mix of the noise, normalized: what the loader does to a batch on the training's device."""
        plan = next(self._plans)
        recipe, rows = self.recipe, (plan.partner_N, plan.lam_N, plan.box_N4)
        memory = None if self.device.type == "cuda" else self._pool.take().permute(0, 3, 1, 2)
        images = mix_normalize(self.images_NHWC, *rows, recipe.mean, recipe.std, self.dtype, memory)
        return TrainBatch(
            images=images,
            label_N=to_device(self.label_N, self.device),
            partner_label_N=to_device(self.label_N[plan.partner_N], self.device),
            lam_N=to_device(plan.lam_N, self.device),
            epoch=plan.epoch,
            step=plan.step,
            group=plan.group,
            plan=plan,
        )
