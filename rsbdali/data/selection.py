"""Rows of an index: some of them as columns again, their canonical order, and two parts drawn class by class."""

from collections.abc import Mapping, Sequence

import numpy as np

from rsbdali.errors import DataError, counted


def row_numbers(rows: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """Rows that a user asks for, as int64 (M,): numbers from 0 (negative ones count from the end), or a mask (count,).

    Raises:
        DataError: none, or one that is not there.
    """
    row_M = np.asarray(rows)
    if row_M.dtype == bool:
        if row_M.shape != (count,):
            raise DataError(
                f"a mask of shape {row_M.shape}: expected one truth value for each of {counted(count, 'image')}"
            )
        row_M = np.flatnonzero(row_M)
    if row_M.ndim != 1 or not len(row_M) or not np.issubdtype(row_M.dtype, np.integer):
        raise DataError("rows of an index: expected one or more whole numbers, or a mask")
    outside_M = (row_M < -count) | (row_M >= count)
    if outside_M.any():
        raise DataError(f"row {row_M[outside_M][0]} is not there: the index has {counted(count, 'image')}")
    return (row_M % count).astype(np.int64)


def take_columns(columns: Mapping[str, np.ndarray], row_M: np.ndarray) -> dict[str, np.ndarray]:
    """Some rows of an index's columns, in the order given; columns that are empty stay so."""
    end_N = columns["path_end_N"]
    start_M = np.concatenate([[0], end_N[:-1]])[row_M]
    length_M = end_N[row_M] - start_M
    new_end_M = np.cumsum(length_M)
    byte_at = np.repeat(start_M - (new_end_M - length_M), length_M) + np.arange(new_end_M[-1])
    taken = {name: column[row_M] if len(column) else column for name, column in columns.items() if name[-2:] == "_N"}
    return {**taken, "path_bytes": columns["path_bytes"][byte_at], "path_end_N": new_end_M}


def canonical_rows(canonical_N: np.ndarray, row_M: np.ndarray) -> np.ndarray:
    """The canonical order of chosen rows: int64 (M,), numbers of the chosen rows; empty where it is their own order.

    Args:
        canonical_N: the canonical order of all rows, empty where it is their own.
        row_M: the rows chosen.
    """
    rank_N = np.argsort(canonical_N) if len(canonical_N) else None
    rank_M = row_M if rank_N is None else rank_N[row_M]
    order_M = np.argsort(rank_M, kind="stable")
    return np.empty(0, np.int64) if (order_M[1:] > order_M[:-1]).all() else order_M


def draw_share(label_N: np.ndarray, canonical_N: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Rows of a share of each class, as a mask (N,): round(fraction × images) of a class, drawn from the seed.

    Which images they are depends on the canonical order alone, not on that of the rows.

    Raises:
        DataError: a fraction that leaves a part empty.
    """
    count = len(label_N)
    order_N = np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(count)
    if len(canonical_N):
        order_N = canonical_N[order_N]
    by_class_N = order_N[np.argsort(label_N[order_N], kind="stable")]
    _, first_C, count_C = np.unique(label_N[by_class_N], return_index=True, return_counts=True)
    within_N = np.arange(count) - np.repeat(first_C, count_C)
    chosen_N = np.zeros(count, bool)
    chosen_N[by_class_N] = within_N < np.repeat(np.rint(count_C * fraction), count_C)
    if not 0 < chosen_N.sum() < count:
        raise DataError(f"fraction={fraction:g} of {counted(count, 'image')}, class by class, leaves one part empty")
    return chosen_N
