"""Operations of a model's training step, counted from the shapes: nothing is computed."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from rsbdali.bench.race.synthetic import NUM_CLASSES
from rsbdali.recipe import Recipe
from rsbdali.training.model import create_model

ROWS = 2  # BatchNorm refuses a single one


def flops_per_image(recipe: Recipe) -> int:
    """Forward and backward of one training image through `recipe.model` at its training size.

    Convolutions and matrix products alone, as torch counts them: a multiplication and an addition are two operations,
    and the first layer has no gradient of its input.
    """
    model = create_model(recipe, NUM_CLASSES).to("meta").train()
    images = torch.empty((ROWS, 3, *recipe.train_size), device="meta")
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return counter.get_total_flops() // ROWS


def utilization(flops: float, images_per_s: float, peak: float) -> float:
    """Share of the device's operations a second that the model's own make up (model FLOPs utilization)."""
    return flops * images_per_s / peak
