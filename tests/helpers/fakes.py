"""Loaders without files: batches of a toy problem, made from (epoch, step, group) alone as the real ones are.

The class is the picture's mean brightness. Imported by tests, and by the scripts that they start.
"""

from collections.abc import Iterator
from types import SimpleNamespace

import torch

from helpers.common import TINY
from rsbdali.recipe import Recipe

CLASSES = 4


def recipe(**values: object) -> Recipe:
    """A recipe that a CPU trains in moments."""
    small = {
        "name": "toy",
        **TINY,
        "epochs": 2,
        "global_batch_size": 32,
        "mix_groups": 2,
        "opt": "lamb",
        "lr": 5e-3,
        "warmup_epochs": 0,
        "log_interval": 1,
    }
    return Recipe.from_dict({**small, **values})


def images_of(label_N: torch.Tensor, size: tuple[int, int], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(label_N), 3, *size, generator=generator)
    images = label_N.float().reshape(-1, 1, 1, 1) - (CLASSES - 1) / 2 + 0.3 * noise
    return images.to(memory_format=torch.channels_last)


class FakeTrainLoader:
    """As `TrainLoader` to the trainer; `before(epoch, step)` is called before the first group of each step."""

    def __init__(self, chosen: Recipe, *, rank: int = 0, world_size: int = 1, steps: int = 3) -> None:
        self.recipe, self.steps_per_epoch, self.wait_s = chosen, steps, 0.0
        self.index = SimpleNamespace(path=str)
        self.groups = range(rank, chosen.mix_groups, world_size)
        self.groups_per_step = len(self.groups)
        self.place = 0, 0
        self.before = lambda epoch, step: None
        self.seen: list[tuple[int, int, int]] = []

    def seek(self, epoch: int, step: int) -> None:
        self.place = epoch, step

    def batch(self, epoch: int, step: int, group: int) -> SimpleNamespace:
        seed = (epoch * 1000 + step) * 100 + group
        rows = self.recipe.global_batch_size // self.recipe.mix_groups
        label_N = torch.randint(CLASSES, (rows,), generator=torch.Generator().manual_seed(seed))
        images = images_of(label_N, self.recipe.train_size, seed)
        return SimpleNamespace(
            images=images,
            label_N=label_N,
            partner_label_N=label_N.flip(0),
            lam_N=torch.full((rows,), 0.9),
            epoch=epoch,
            step=step,
            group=group,
            plan=SimpleNamespace(sample_N=torch.arange(rows) + seed),
        )

    def __iter__(self) -> Iterator[SimpleNamespace]:
        epoch, first = self.place
        for step in range(first, self.steps_per_epoch):
            self.before(epoch, step)
            for group in self.groups:
                self.seen.append((epoch, step, group))
                yield self.batch(epoch, step, group)


class FakeEvalLoader:
    """As `EvalLoader`: `n` images in batches of 16 over the ranks; ranks that run out yield empty batches."""

    def __init__(self, chosen: Recipe, *, rank: int = 0, world_size: int = 1, n: int = 40) -> None:
        label_N = torch.arange(n) % CLASSES
        images = images_of(label_N, chosen.test_size, 7)
        self.images, self.label_N = images[rank::world_size], label_N[rank::world_size]
        self.length = -(-n // (16 * world_size))

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[SimpleNamespace]:
        for i in range(self.length):
            rows = slice(i * 16, (i + 1) * 16)
            yield SimpleNamespace(images=self.images[rows], label_N=self.label_N[rows])
