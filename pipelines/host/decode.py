"""Reads images and decodes one window of each, by a DALI pipeline of a single thread.

A worker of the host executor owns one: DALI's thread decodes while the worker waits, so that together they keep one
core busy and what was just decoded is still in its cache when the worker goes on with it.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types

from rsbdali.pipelines.executor import DecodeFailure
from rsbdali.plan.randaugment import BICUBIC


class WindowDecoder:
    """Decodes windows of JPEG, PNG, … files to RGB on the CPU; pixels equal Pillow's `convert("RGB")`, then `crop`.

    For JPEG only the scan lines and blocks of the window are transformed back (the entropy code before it still has to
    be read). EXIF orientation is ignored, as timm does.

    Args:
        rows: most windows of one call.
        files: whether images are given as paths; else as encoded bytes.
    """

    def __init__(self, rows: int, *, files: bool = True) -> None:
        self._rows, self._files = rows, files
        self._pipe = _build(rows, files)

    def decode(self, sources: Sequence[str | np.ndarray], window_M4: np.ndarray) -> list[torch.Tensor]:
        """Decode M windows.

        Args:
            sources: M file names, or M encoded images (uint8).
            window_M4: int32 (y, x, h, w) in source pixels, within each image.

        Returns:
            M tensors uint8 (h, w, 3) on the CPU; they share DALI's memory and stay valid while they are held.

        Raises:
            DecodeFailure: one of the files is missing, no image, broken, or smaller than its window.
        """
        window_M4 = np.ascontiguousarray(window_M4, dtype=np.int32)
        try:
            self._pipe.feed_input("source", [_as_array(source) for source in sources])
            self._pipe.feed_input("start", np.ascontiguousarray(window_M4[:, :2]))
            self._pipe.feed_input("shape", np.ascontiguousarray(window_M4[:, 2:]))
            (windows,) = self._pipe.run()
        except RuntimeError as error:  # DALI knows no finer class for what a file can do to it
            self._pipe = _build(self._rows, self._files)  # what the failed run left in its queues is not worth knowing
            raise DecodeFailure(f"one of {len(sources)} images did not decode: {error}") from error
        # by the buffer protocol, at a quarter of what DLPack costs
        return [torch.from_numpy(np.asarray(windows[i])) for i in range(len(sources))]


def _as_array(source: str | np.ndarray) -> np.ndarray:
    return np.frombuffer(os.fsencode(source), np.uint8) if isinstance(source, str) else source


def _build(rows: int, files: bool) -> Pipeline:
    pipe = _graph(files, batch_size=rows, num_threads=1, device_id=None, prefetch_queue_depth=1, exec_dynamic=True)
    pipe.build()
    return pipe


@pipeline_def
def _graph(files: bool) -> Any:
    source, start, shape = (fn.external_source(name=name) for name in ("source", "start", "shape"))
    return fn.decoders.image_slice(
        fn.io.file.read(source) if files else source,
        start,
        shape,
        axes=(0, 1),
        normalized_anchor=False,
        normalized_shape=False,
        adjust_orientation=False,
        output_type=types.RGB,
    )


_KERNELS = (torch.ops.aten._upsample_bilinear2d_aa.out, torch.ops.aten._upsample_bicubic2d_aa.out)
assert BICUBIC == 1


def resize_into(out_HWC: torch.Tensor, image_HWC: torch.Tensor, interp: int) -> None:
    """Antialiased resize of `image_HWC` to the size of `out_HWC`; both uint8, channels last, on the CPU.

    Args:
        out_HWC: receives the result; contiguous.
        image_HWC: source; its rows may lie apart (a window of a larger image).
        interp: `plan.BILINEAR` or `plan.BICUBIC`.
    """
    # the batch dimension must come first: only then do the strides say channels last, and no copy is made
    source = image_HWC[None].permute(0, 3, 1, 2)
    size = [out_HWC.shape[0], out_HWC.shape[1]]
    _KERNELS[interp](source, size, False, None, None, out=out_HWC[None].permute(0, 3, 1, 2))


def flipped(image_HWC: torch.Tensor) -> torch.Tensor:
    """The image mirrored left to right, in memory of its own (uint8, H, W, 3)."""
    return image_HWC[None].permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1)[0]
