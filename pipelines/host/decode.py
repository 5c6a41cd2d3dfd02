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
