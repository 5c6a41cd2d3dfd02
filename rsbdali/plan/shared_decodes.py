"""Decode once, augment k times: which rows of a batch share one decoded image (`aug_repeats_mode: decode_once`)."""

import numpy as np


def share_decodes(sample_N: np.ndarray, repeats: int) -> np.ndarray:
    """Spread the rows of a batch over decoded images, each used up to `repeats` times.

    Args:
        sample_N: image of each row.
        repeats: uses of one decoded image; an image that more rows ask for is decoded again.

    Returns:
        int64, shape (U, repeats): rows that use the U-th decoded image. Every row occurs; a decoded image with fewer
        rows repeats its first one, which then is made more than once.
    """
    by_sample = np.argsort(sample_N, kind="stable")
    sorted_N = sample_N[by_sample]
    first_N = np.searchsorted(sorted_N, sorted_N)
    nth_N = np.arange(len(sorted_N)) - first_N  # running number of the row among those of its image
    # a new decoded image begins with every `repeats`-th row of an image
    slot_N = np.cumsum(nth_N % repeats == 0) - 1
    rows_UK = np.repeat(by_sample[nth_N % repeats == 0][:, None], repeats, axis=1)
    rows_UK[slot_N, nth_N % repeats] = by_sample
    return rows_UK


def covering_windows(crop_N4: np.ndarray, rows_UK: np.ndarray) -> np.ndarray:
    """The smallest window that holds all crops of each decoded image: int32, shape (U, 4), (y, x, h, w)."""
    start_UK2, end_UK2 = crop_N4[rows_UK, :2], crop_N4[rows_UK, :2] + crop_N4[rows_UK, 2:]
    start_U2 = start_UK2.min(axis=1)
    return np.concatenate([start_U2, end_UK2.max(axis=1) - start_U2], axis=1).astype(np.int32)
