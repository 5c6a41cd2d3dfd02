"""JPEGs that show every pixel moved, and one in memory as the pipelines see an index."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from rsbdali.data.intervals import Intervals
from rsbdali.data.sources.base import ByteRange


class Memory:
    """One encoded image as the pipelines see an index."""

    def __init__(self, encoded: bytes, intervals: Intervals | None) -> None:
        self._encoded, self._intervals, self.parts_read, self.bytes_read = encoded, intervals, 0, 0
        with Image.open(BytesIO(encoded)) as image:
            self.width_N, self.height_N = (np.array([side], np.int32) for side in image.size)

    def __len__(self) -> int:
        return 1

    def intervals_of(self, _: int) -> Intervals | None:
        return self._intervals

    def read_parts(self, _: int, parts: Sequence[ByteRange], out_B: np.ndarray) -> None:
        out_B[:] = np.frombuffer(b"".join(self._encoded[start : start + nbytes] for start, nbytes in parts), np.uint8)
        self.parts_read, self.bytes_read = self.parts_read + 1, self.bytes_read + len(out_B)

    def read_bytes(self, _: int) -> np.ndarray:
        return np.frombuffer(self._encoded, np.uint8)

    def read_copy(self, _: int) -> np.ndarray:
        pytest.fail("a window of it did not decode")

    def fetch_ahead(self, sample_N: np.ndarray, parts: object = None) -> None:
        pass


def pixels(encoded: bytes) -> np.ndarray:
    with Image.open(BytesIO(encoded)) as image:
        return np.asarray(image)


def jpeg(height: int, width: int, seed: int, **options: object) -> bytes:
    """Noise over a ramp, where a shift by one pixel, or chroma interpolated otherwise, shows everywhere."""
    rng = np.random.default_rng(seed)
    ramp_HWC = np.linspace(0, 180, width)[None, :, None] + rng.normal(30, 25, (height, width, 3))
    image = Image.fromarray(np.clip(ramp_HWC, 0, 255).astype(np.uint8))
    out = BytesIO()
    image.convert(str(options.pop("mode", "RGB"))).save(out, "JPEG", **options)
    return out.getvalue()
