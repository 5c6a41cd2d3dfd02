"""`python -m rsbdali.pipelines.roi_check GPU`: exit 0 if that GPU decodes regions of JPEGs as the CPU does.

Run in a child process by `decode_mode`, since a failure may take the process down.
"""

import sys
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn
from PIL import Image

from rsbdali.pipelines.dali_queue import Fields, Runner
from rsbdali.pipelines.decode import decode_window, filter_codes, resize
from rsbdali.plan.randaugment import BILINEAR

SIZES = ((500, 375), (375, 500), (1200, 801), (64, 47))  # (width, height)
BATCHES = 4
# the decoders differ by a few levels in colour edges; a misplaced region differs by tens on average
MEAN_BOUND = 4.0


def main(gpu: int) -> str | None:
    """What is wrong with ROI decoding on a GPU, None if nothing is."""
    fields = _fields()
    try:
        on_cpu, on_gpu = _run(fields, torch.device("cpu")), _run(fields, torch.device("cuda", gpu))
    except DecodeError as error:
        return str(error)
    difference_N = np.abs(on_cpu - on_gpu).mean(axis=(1, 2, 3))
    return None if difference_N.max() <= MEAN_BOUND else f"pixels differ by {difference_N.max():.0f} levels on average"


class DecodeError(Exception):
    """Some of the images did not decode."""


def _fields() -> list[Any]:
    """Encoded images, window starts, window shapes, filters: corners, edges and middles of several kinds of JPEG."""
    encoded, windows = [], []
    for i, (width, height) in enumerate(SIZES):
        coarse_HWC = np.random.default_rng(i).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        jpeg = BytesIO()
        image = Image.fromarray(coarse_HWC).resize((width, height), Image.Resampling.BICUBIC)
        image.save(jpeg, "JPEG", quality=90, progressive=i == 1, subsampling=i % 3)
        h, w = height // 2 + 1, width // 3 + 1
        for window in ((0, 0, height, width), (height - h, width - w, h, w), (7, 3, h, w), (height // 4, 0, 9, width)):
            encoded.append(np.frombuffer(jpeg.getvalue(), np.uint8))
            windows.append(window)
    window_N4 = np.array(windows, np.int32)
    return [encoded, window_N4[:, :2], window_N4[:, 2:], filter_codes(np.full(len(encoded), BILINEAR))]


def _run(fields: list[Any], device: torch.device) -> np.ndarray:
    name = "gpu" if device.type == "cuda" else "cpu"

    def define(source: Callable[[], Fields]) -> Any:
        encoded, start, shape, filters = fn.external_source(source=source, num_outputs=4, batch=True)
        return resize(decode_window(encoded, start, shape, device=name, roi=True), (32, 32), filters)

    runner = Runner(define, rows=len(fields[0]), device=device, num_threads=2)
    try:
        for _ in range(BATCHES):
            runner.submit(fields)
        return np.concatenate([_pixels(runner) for _ in range(BATCHES)])
    finally:
        runner.close()


def _pixels(runner: Runner) -> np.ndarray:
    outputs, _, bad = runner.collect()
    if bad:
        raise DecodeError(f"{len(bad)} windows of good JPEGs do not decode")
    pixels: np.ndarray = outputs[0].cpu().numpy().astype(np.float32)
    return pixels


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
