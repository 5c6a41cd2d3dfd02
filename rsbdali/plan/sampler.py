"""Which image comes when: pure functions of (n, seed, epoch, repeats, world size).

`epoch_order` lists the images of one epoch by global position; rank r of W takes positions r, r+W, r+2W, … as
`torch.utils.data.DistributedSampler` and timm's `RepeatAugSampler` do. The permutation comes from `torch.randperm`
seeded with seed + epoch, so with seed 0 it is timm's own.
"""

import numpy as np
import torch

SELECTED_ROUND = 256  # timm's RepeatAugSampler keeps a multiple of 256 images an epoch


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """The shuffle of one epoch: int64, shape (n,), by torch's CPU generator."""
    generator = torch.Generator("cpu")
    generator.manual_seed(seed + epoch)
    return torch.randperm(n, dtype=torch.int64, device="cpu", generator=generator).numpy()


def rows_per_epoch(n: int, repeats: int, groups: int = 1) -> int:
    """Rows (augmented images) of one epoch before the division into batches, for repeats >= 1.

    Without repeats it is filled up to a multiple of the mix groups by its first images, as `DistributedSampler` fills
    it up to one of the ranks: else an epoch would miss a batch that timm has.
    """
    if repeats > 1:
        return n // SELECTED_ROUND * SELECTED_ROUND if n >= SELECTED_ROUND else n
    return -(-n // groups) * groups


def epoch_order(n: int, seed: int, epoch: int, repeats: int = 1, world_size: int = 1) -> np.ndarray:
    """Images of one epoch by global position.

    With repeats > 1 each image is there `repeats` times in a row, so the ranks share its repeats out, and the epoch is
    cut to about n rows (timm's `RepeatAugSampler`). With repeats = 1 it is the plain permutation.

    Args:
        n: number of images.
        seed: the recipe's seed.
        epoch: counted from 0.
        repeats: timm's `aug_repeats`, 0 and 1 both meaning none.
        world_size: W; only below 256 images does timm's length depend on it (it pads to a multiple of W).

    Returns:
        int64 array of image indices; `[rank::world_size]` is what that rank's timm sampler yields.
    """
    return repeat_order(permutation(n, seed, epoch), repeats, world_size)


def repeat_order(order: np.ndarray, repeats: int, world_size: int = 1) -> np.ndarray:
    """`epoch_order` of any order of n images."""
    n = len(order)
    if repeats <= 1:
        # DistributedSampler with drop_last: as many whole rounds of W as fit
        return order[: n // world_size * world_size]
    per_rank = rows_per_epoch(n, repeats) // world_size if n >= SELECTED_ROUND else -(-n // world_size)
    position = np.arange(per_rank * world_size) % (n * repeats)
    return order[position // repeats]


def local_group(order: np.ndarray, repeats: int, rows: int, index: int) -> np.ndarray:
    """Images of one mix group when all repeats of an image stay in the group (`aug_repeats_mode: decode_once`).

    The group holds ceil(rows / repeats) images; the last repeat of the last few is dropped where rows is no multiple.
    No row and its mirror (the mixup partner, rows - 1 - i) hold the same image in a group of at least 2 × repeats rows
    (the middle row of an odd group is its own mirror).

    Args:
        order: the epoch's permutation, shape (n,).
        repeats: augmentations per image.
        rows: rows of one group.
        index: the group's running number in the epoch.

    Returns:
        int64, shape (rows,): image indices, repeat by repeat, so that slices of a group hold few repeats.
    """
    images = -(-rows // repeats)
    chosen = order[(index * images + np.arange(images)) % len(order)]
    slot_N = np.arange(rows) % images
    _separate_mirrors(slot_N)
    return chosen[slot_N]


def _separate_mirrors(slot_N: np.ndarray) -> None:
    """Swap rows, in place, until no row holds the same slot as its mirror (few rows are ever touched)."""
    rows = len(slot_N)
    for i in np.flatnonzero(slot_N[: rows // 2] == slot_N[::-1][: rows // 2]):
        mine = slot_N[i]
        for j in range(rows // 2):
            # after the swap row i holds slot_N[j], row j holds `mine`: both pairs must differ
            if slot_N[j] != mine and slot_N[rows - 1 - j] != mine:
                slot_N[i], slot_N[j] = slot_N[j], mine
                break
