"""The loaders, and `create_loader` for a trainer that already exists."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rsbdali.devices import default_threads, resolve_device
from rsbdali.eval_loader import EvalBatch, EvalLoader
from rsbdali.index import ImageIndex, find_split
from rsbdali.ops.bce import soft_targets
from rsbdali.recipe import Recipe
from rsbdali.train_loader import TrainBatch, TrainLoader, create_executor

__all__ = [
    "EvalBatch", "EvalLoader", "TrainBatch", "TrainLoader", "TupleLoader", "create_executor", "create_loader",
    "default_threads", "resolve_device",
]  # fmt: skip


def create_loader(
    data: str | Path,
    recipe: str | Recipe = "a3",
    *,
    is_training: bool = True,
    **options: Any,
) -> "TupleLoader":
    """A loader for a trainer that already exists: yields `(images, targets)` as timm's `create_loader` with mixup does.

    Args:
        data: folder with `train/<class>/…` and `val/<class>/…`.
        recipe: name, path or `Recipe`.
        is_training: training batches with soft targets (N, C) float32, else evaluation batches with labels (N,) int64.
        **options: of `TrainLoader` or `EvalLoader`.
    """
    recipe = Recipe.load(recipe) if isinstance(recipe, str) else recipe
    index = _load_index(Path(data), "train" if is_training else "val")
    loader = TrainLoader(index, recipe, **options) if is_training else EvalLoader(index, recipe, **options)
    return TupleLoader(loader, index.num_classes, recipe.smoothing)


def _load_index(data: Path, split: str) -> ImageIndex:
    """The index of a split; validation labels count in the order of the training classes, where those are there."""
    has_train = split == "val" and (data / "train").is_dir()
    classes = ImageIndex.load(data / "train").classes if has_train else None
    return ImageIndex.load(find_split(data, split), classes=classes)


class TupleLoader:
    """`(images, targets)` pairs of a loader; see `create_loader`.

    Args:
        loader: whose batches to give.
        num_classes: width of the soft targets.
        smoothing: label smoothing of the soft targets.
    """

    def __init__(self, loader: TrainLoader | EvalLoader, num_classes: int, smoothing: float) -> None:
        self.loader, self.num_classes, self.smoothing = loader, num_classes, smoothing

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """As `TrainLoader.set_epoch`; evaluation is the same every time."""
        if isinstance(self.loader, TrainLoader):
            self.loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self.loader:
            if isinstance(batch, TrainBatch):
                labels = batch.label_N, batch.partner_label_N, batch.lam_N
                yield batch.images, soft_targets(*labels, num_classes=self.num_classes, smoothing=self.smoothing)
            else:
                yield batch.images, batch.label_N

    def close(self) -> None:
        """Stop the executor's threads."""
        self.loader.close()
