"""The graph's calls into torch, for the two kinds of op that DALI lacks in an exact form: warps and equalize.

DALI hands the samples of a batch that need the op over as lists of DLPack capsules, on the CPU or the GPU, and takes
such a list back.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.utils import dlpack

from rsbdali.ops.equalize import equalize
from rsbdali.ops.warp import warp_each
from rsbdali.plan.randaugment import BICUBIC


def warp_samples(image_capsules: list[Any], matrix_capsules: list[Any], filter_capsules: list[Any]) -> list[Any]:
    """`warp` for DALI's `dl_tensor_python_function`: lists of DLPack capsules in, one list out."""

    def run(images_NHWC: torch.Tensor) -> torch.Tensor:
        matrix_N6, cubic_N = _stack(matrix_capsules), _stack(filter_capsules).flatten() == BICUBIC
        return warp_each(images_NHWC, matrix_N6, cubic_N)

    return _run(run, image_capsules)


def equalize_samples(image_capsules: list[Any]) -> list[Any]:
    """`equalize` for DALI's `dl_tensor_python_function`."""
    return _run(equalize, image_capsules)


def _stack(capsules: list[Any]) -> torch.Tensor:
    return torch.stack([dlpack.from_dlpack(c) for c in capsules])


def _run(function: Callable[[torch.Tensor], torch.Tensor], image_capsules: list[Any]) -> list[Any]:
    """Call `function` on the stacked images; on a GPU in a stream of its own, finished on return.

    DALI has finished the inputs before it calls (`synchronize_stream`), and copies the results on the same stream of
    its own, so by the next call that copy is done and torch may use their memory again. The default stream would queue
    this work behind the model's.
    """
    first = dlpack.from_dlpack(image_capsules[0])
    images = [first, *(dlpack.from_dlpack(c) for c in image_capsules[1:])]
    if not first.is_cuda:
        result_NHWC = function(torch.stack(images))
    else:
        stream = _side_stream(first.device.index)
        with torch.cuda.device(first.device), torch.cuda.stream(stream):
            result_NHWC = function(torch.stack(images))
        stream.synchronize()
    return [dlpack.to_dlpack(image) for image in result_NHWC]  # type: ignore[attr-defined]  # not in __all__


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
