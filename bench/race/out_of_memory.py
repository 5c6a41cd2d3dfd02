"""Was it for want of GPU memory that a contestant failed? By what torch, cuBLAS, cuDNN, nvJPEG and DALI say then."""

import re

_SAID = re.compile(
    r"out of (gpu )?memory|ALLOC_FAILED|ALLOCATOR_FAILURE|ErrorMemoryAllocation|CUDA allocation failed"
    r"|Can't allocate \d+ bytes on device",
    re.IGNORECASE,
)
OUT_OF_MEMORY = "out of GPU memory"


def out_of_memory(text: str) -> bool:
    """Whether an error's text, or what a process wrote before it ended, is about GPU memory."""
    return _SAID.search(text) is not None
