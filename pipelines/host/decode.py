"""Decodes one window of each of some encoded images, by a DALI pipeline of a single thread.

A worker of the host executor owns one: DALI's thread decodes while the worker waits, so that together they keep one
core busy and what was just decoded is still in its cache when the worker goes on with it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from rsbdali.errors import UnreadableImage
from rsbdali.pipelines.executor import ImageSource
from rsbdali.pipelines.forks import abandoned_in_children, check_process
from rsbdali.pipelines.regions import RegionReader


class _DecodeError(RuntimeError):
    """One of the images is broken, or smaller than its window. DALI names one and not all."""


class WindowDecoder:
    """Decodes windows of JPEG, PNG, … files to RGB on the CPU; pixels equal Pillow's `convert("RGB")`, then `crop`.

    For JPEG only the scan lines and blocks of the window are transformed back (the entropy code before it still has to
    be read). EXIF orientation is ignored, as timm does.

    Args:
        rows: most windows of one call.
    """

    def __init__(self, rows: int) -> None:
        check_process()
        self._pipe = _graph(batch_size=rows, num_threads=1, device_id=None, prefetch_queue_depth=1, exec_dynamic=True)
        self._pipe.build()
        abandoned_in_children(self._pipe)
        self._reader = RegionReader()

    def read(self, index: ImageSource, sample_M: Sequence[int], window_M4: np.ndarray) -> list[np.ndarray | str]:
        """Read M images and decode a window of each.

        Where DALI refuses one of them, each is decoded by itself, from Pillow's copy where that is what it takes.

        Args:
            index: the images.
            sample_M: rows of the index.
            window_M4: int32 (y, x, h, w) in source pixels, within each image.

        Returns:
            M arrays uint8 (h, w, 3), or the reason why neither DALI nor Pillow decodes an image; the
            arrays share DALI's memory and stay valid while they are held.

        Raises:
            DataError: the source of the images does not answer.
        """
        read, inside_M4 = self._reader.read(index, sample_M, window_M4)
        found: list[Any] = list(read)
        kept_K = [k for k, encoded in enumerate(found) if not isinstance(encoded, str)]
        if not kept_K:
            return found
        try:
            windows = self.decode([found[k] for k in kept_K], inside_M4[kept_K])
        except _DecodeError:
            windows = [self._read_one(index, sample_M[k], found[k], inside_M4[k], window_M4[k]) for k in kept_K]
        for k, window in zip(kept_K, windows, strict=True):
            found[k] = window
        return found

    def decode(self, encoded: Sequence[np.ndarray], window_M4: np.ndarray) -> list[Any]:
        """Windows of M encoded images, as `read` returns them."""
        window_M4 = np.ascontiguousarray(window_M4, dtype=np.int32)
        self._pipe.feed_input("source", list(encoded))
        self._pipe.feed_input("start", np.ascontiguousarray(window_M4[:, :2]))
        self._pipe.feed_input("shape", np.ascontiguousarray(window_M4[:, 2:]))
        try:
            (windows,) = self._pipe.run()  # an error costs this batch; the pipeline goes on with the next
        except RuntimeError as error:  # DALI knows no finer class for what an image can do to it
            raise _DecodeError(str(error)) from error
        return [np.asarray(windows[i]) for i in range(len(encoded))]

    def _read_one(
        self, index: ImageSource, sample: int, encoded: np.ndarray, inside_4: np.ndarray, window_4: np.ndarray
    ) -> np.ndarray | str:
        try:
            return self.decode([encoded], inside_4[None])[0]
        except _DecodeError:
            try:
                return self.decode([index.read_copy(sample)], window_4[None])[0]
            except UnreadableImage as error:
                return str(error)


@pipeline_def
def _graph() -> Any:
    source, start, shape = (fn.external_source(name=name) for name in ("source", "start", "shape"))
    return fn.decoders.image_slice(
        source,
        start,
        shape,
        axes=(0, 1),
        normalized_anchor=False,
        normalized_shape=False,
        adjust_orientation=False,
        output_type=types.RGB,
    )
