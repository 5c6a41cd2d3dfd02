"""What the peers share: a feed over any iterable, the files, mixing for those that have none, timm's levels in bins."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from rsbdali.plan.randaugment import RandAugmentPolicy
from rsbdali.recipe import Recipe

BINS = 31  # torchvision's and DALI's magnitude bins: timm's levels 0..10 are every third one
PREFETCH_FACTOR = 2  # DataLoader's default, batches for each worker


class PeerFeed:
    """Batches from any iterable loader whose items begin with the images."""

    def __init__(self, batches: Iterator[torch.Tensor], ready: int, note: str) -> None:
        self.ready, self.note, self._batches = ready, note, batches

    def deliver(self) -> torch.Tensor:
        """The next batch: (N, 3, H, W) float32."""
        return next(self._batches)

    def close(self) -> None:
        """Let go of the loader; its workers end with it."""
        self._batches = iter(())


def image_paths(root: str) -> list[str]:
    """All files below a folder, in order."""
    return [str(path) for path in sorted(Path(root).rglob("*")) if path.is_file()]


def magnitude_bin(policy: RandAugmentPolicy) -> int:
    """Timm's mean level as one of torchvision's and DALI's 31 magnitude bins."""
    return round(policy.magnitude / 10 * (BINS - 1))


class PlainMix:
    """Normalize a uint8 batch and mix it with its reverse by ordinary torch operations, one λ a batch."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self._rng = recipe, np.random.default_rng(recipe.seed)
        self._mean = torch.tensor(recipe.mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(recipe.std, device=device).view(1, 3, 1, 1) * 255

    def __call__(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Float32, normalized and mixed: (N, 3, H, W)."""
        return self.mix(images_NCHW.float().sub_(self._mean).div_(self._std))

    def mix(self, images: torch.Tensor) -> torch.Tensor:
        """Mix a normalized float32 batch (N, 3, H, W), in place where CutMix is drawn."""
        cut = self.recipe.cutmix > 0 and (self.recipe.mixup <= 0 or self._rng.random() < self.recipe.mixup_switch_prob)
        alpha = self.recipe.cutmix if cut else self.recipe.mixup
        if alpha <= 0 or self._rng.random() >= self.recipe.mixup_prob:
            return images
        lam = float(self._rng.beta(alpha, alpha))
        if not cut:
            return torch.lerp(images.flip(0), images, lam)
        height, width = images.shape[2:]
        cut_h, cut_w = int(height * (1 - lam) ** 0.5), int(width * (1 - lam) ** 0.5)
        y, x = int(self._rng.integers(height - cut_h + 1)), int(self._rng.integers(width - cut_w + 1))
        images[:, :, y : y + cut_h, x : x + cut_w] = images.flip(0)[:, :, y : y + cut_h, x : x + cut_w]
        return images
