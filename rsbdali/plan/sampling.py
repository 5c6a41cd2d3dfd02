"""Which images an epoch holds, and in which order, before repeats and batches: a pure function of (seed, epoch).

    shuffle (torch's permutation) · in order · drawn by weights · the user's own order

A shuffle and a draw start from the canonical order of the images, so the order in which a user lists them does not
matter. The global batches are slices of this order, and ranks take every W-th row of them.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from rsbdali.errors import RecipeError, counted
from rsbdali.plan.draws import Stream, generator
from rsbdali.plan.sampler import permutation


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampling:
    """How the images of an epoch are chosen.

    Attributes:
        shuffle: False: rows 0, 1, 2, … in every epoch.
        drop_last: False: an epoch ends with a smaller batch of what is left over, with a few rows of its beginning
            where the mix groups would not get equal numbers (torch's `DistributedSampler` pads so).
        weight_N: float64, shape (n,): an epoch is n draws with replacement, a row's chance in proportion to its weight
            (torch's `WeightedRandomSampler`); None: each row once.
        own_order: rows of an epoch, int64, as the user wants them; None: as above.
        own_length: how many those are, the same number in each epoch.
        canonical_N: int64 (n,), the canonical order of the rows; empty where it is their own.
    """

    shuffle: bool = True
    drop_last: bool = True
    weight_N: np.ndarray | None = None
    own_order: Callable[[int], np.ndarray] | None = None
    own_length: int = 0
    canonical_N: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def length(self, n: int) -> int:
        """Images an epoch, of n that there are."""
        return n if self.own_order is None else self.own_length

    def order(self, n: int, seed: int, epoch: int) -> np.ndarray:
        """Rows of one epoch: int64, shape (length,).

        Raises:
            RecipeError: the user's own order has another length than in epoch 0.
        """
        if self.own_order is not None:
            return _of_length(self.own_length, self.own_order(epoch), epoch)
        if not self.shuffle:
            return np.arange(n)
        chosen = permutation(n, seed, epoch) if self.weight_N is None else self._drawn(n, seed, epoch)
        return self.in_canonical_order(chosen)

    def in_canonical_order(self, place_K: np.ndarray) -> np.ndarray:
        """The rows at positions in the canonical order."""
        return self.canonical_N[place_K] if len(self.canonical_N) else place_K

    @property
    def is_choice(self) -> bool:
        """Whether an epoch may leave images out, so that a replacement must come from the epoch too."""
        return self.own_order is not None or self.weight_N is not None

    def describe(self) -> str:
        """What decides the order, as text that a loader's state holds."""
        if self.own_order is not None:
            how = "own order"
        elif self.weight_N is not None:
            digest = hashlib.blake2b(self._canonical_weights().tobytes(), digest_size=8)
            how = f"weights {digest.hexdigest()}"
        else:
            how = "shuffled" if self.shuffle else "in order"
        return how if self.drop_last else f"{how}, last batch kept"

    def _canonical_weights(self) -> np.ndarray:
        assert self.weight_N is not None
        return self.weight_N[self.canonical_N] if len(self.canonical_N) else self.weight_N

    def _drawn(self, n: int, seed: int, epoch: int) -> np.ndarray:
        """Draw n positions in the canonical order, by inversion of the distribution function of the weights."""
        share_N = np.cumsum(self._canonical_weights())
        u_N = generator(seed, Stream.SAMPLE, epoch, 0).random(n) * share_N[-1]
        # a product that rounds up to the sum would be a position too far
        return np.minimum(np.searchsorted(share_N, u_N, side="right"), np.flatnonzero(np.diff(share_N, prepend=0))[-1])


def _of_length(expected: int, order: np.ndarray, epoch: int) -> np.ndarray:
    if len(order) != expected:
        raise RecipeError(
            f"sampler= gives {counted(len(order), 'image')} in epoch {epoch} and {expected} in epoch 0: "
            "expected equal numbers"
        )
    return order


def class_balanced_weights(label_N: np.ndarray) -> np.ndarray:
    """Weights by which every class that has images is drawn equally often: float64, shape (N,)."""
    return 1.0 / np.bincount(label_N)[label_N]
