"""Our training step on synthetic data: the one that training makes, over batches mixed as the loader mixes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import torch
from torch import nn

from rsbdali.bench.measure.phases import Mark, MarkedScaler, marked_forward, unmarked
from rsbdali.bench.race.synthetic import NUM_CLASSES, Synthetic
from rsbdali.distributed.world import World
from rsbdali.recipe import Recipe
from rsbdali.training.acceleration import PLAIN, Acceleration, make_step
from rsbdali.training.model import create_model
from rsbdali.training.optim import create_optimizer
from rsbdali.training.precision import amp_dtype


class OurStep:
    """One optimizer step of ours at each call.

    Args:
        recipe: from `synthetic.step_recipe`: model, sizes, optimizer, loss, amp_dtype.
        device: of the model and the batches.
        mixed: mix and normalize a uint8 batch for each step, as training does; else all steps take one mixed batch.
        acceleration: torch.compile and CUDA graphs, as in training.

    Attributes:
        model: what is trained.
        batch: the one batch of all steps; None where each has its own.
    """

    def __init__(
        self, recipe: Recipe, device: torch.device, *, mixed: bool = True, acceleration: Acceleration = PLAIN
    ) -> None:
        dtype = amp_dtype(recipe.amp_dtype, device)
        self._rows = recipe.global_batch_size
        self.model: nn.Module = create_model(recipe, NUM_CLASSES).to(device).train()
        self._scaler = MarkedScaler(device.type, enabled=dtype is torch.float16)
        optimizer = create_optimizer(self.model, recipe)
        self._train = make_step(
            self.model,
            optimizer,
            self._scaler,
            recipe,
            acceleration=acceleration,
            device=device,
            amp_dtype=dtype,
            world=World(),
        )
        self._data = Synthetic(recipe, device, dtype)
        self.batch = None if mixed else self._data.mixed()
        self._mark: Mark = unmarked
        self._updates = count(1)

    def __call__(self) -> int:
        """Make a step; how many rows it took."""
        batch = self.batch
        if batch is None:
            batch = self._data.mixed()
            self._mark("mix")
        self._train([batch], update=next(self._updates))
        self._mark("optimizer")
        return self._rows

    @contextmanager
    def marked(self, mark: Mark) -> Iterator[None]:
        """See `phases.Markable`."""
        self._mark = mark
        with marked_forward(self.model, self._scaler, mark):
            yield
        self._mark = unmarked
