"""Was it for want of GPU memory that a candidate failed? By what torch, cuBLAS, cuDNN, nvJPEG and DALI say then."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rsbdali.errors import DeviceError

_SAID = re.compile(
    r"out of (gpu )?memory|ALLOC_FAILED|ALLOCATOR_FAILURE|ErrorMemoryAllocation|CUDA allocation failed"
    r"|Can't allocate \d+ bytes on device",
    re.IGNORECASE,
)
OUT_OF_MEMORY = "out of GPU memory"


def out_of_memory(text: str) -> bool:
    """Whether an error's text, or what a process wrote before it ended, is about GPU memory."""
    return _SAID.search(text) is not None


@contextmanager
def dropped_where_memory_ends(name: str, skipped: dict[str, str]) -> Iterator[None]:
    """End a block early where GPU memory does not suffice, note that in `skipped`, and give back what torch held."""
    try:
        yield
        return
    except (RuntimeError, MemoryError, DeviceError) as error:  # torch's; DALI's; that of our training step
        if not out_of_memory(str(error)):
            raise
    # behind the handler, where the error no longer holds on to tensors
    skipped[name] = OUT_OF_MEMORY
    torch.cuda.empty_cache()
