"""Batch-sized CPU buffers that are used again once they are not held.

A fresh 40 MB batch costs ten thousand page faults; one that comes back costs none.
"""

import math
import sys

import numpy as np
import torch


def _references(arrays: list[np.ndarray]) -> list[int]:
    """How often each array is referred to, by the list and by whoever else."""
    return [sys.getrefcount(array) for array in arrays]


# counted and not written down: interpreters differ in how many references the counting itself holds
_UNUSED = _references([np.empty(0)])[0]


class BufferPool:
    """Hands out CPU tensors of one shape and dtype, and takes their memory back when the last view of it is gone.

    Not for several threads at once. Memory is bounded by the most tensors ever held at the same time.

    Args:
        shape: of each tensor.
        dtype: of each tensor.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._shape, self._dtype = shape, dtype
        self._arrays: list[np.ndarray] = []

    def take(self) -> torch.Tensor:
        """A contiguous tensor with unspecified contents that no living tensor shares memory with."""
        for array, references in zip(self._arrays, _references(self._arrays), strict=True):
            # every tensor over the array, views included, keeps a reference to it through its storage
            if references == _UNUSED:
                return self._tensor(array)
        # NumPy asks for huge pages, torch does not
        self._arrays.append(np.empty(math.prod(self._shape) * self._dtype.itemsize, np.uint8))
        return self._tensor(self._arrays[-1])

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).view(self._dtype).view(self._shape)
