"""Batch-sized CPU buffers that are used again once nobody holds them.

A fresh 40 MB batch costs ten thousand page faults; one that comes back costs none.
"""

import math
import sys

import numpy as np
import torch

# what `sys.getrefcount` says of an array that only the pool's list, the loop variable and the call itself refer to
_UNUSED = 3


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
        for array in self._arrays:
            # every tensor over the array, views included, keeps a reference to it through its storage
            if sys.getrefcount(array) == _UNUSED:
                return self._tensor(array)
        # NumPy asks for huge pages, torch does not
        self._arrays.append(np.empty(math.prod(self._shape) * self._dtype.itemsize, np.uint8))
        return self._tensor(self._arrays[-1])

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).view(self._dtype).view(self._shape)
