"""`mix_normalize` on the CPU: block by block in the cache, in the calling thread."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

Rows = np.ndarray | torch.Tensor


def mix_cpu(
    images_NHWC: torch.Tensor,
    partner_N: Rows,
    lam_N: Rows,
    box_N4: Rows,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    out: torch.Tensor | None,
) -> torch.Tensor:
    """`mix_normalize` for three channels: each pixel is converted once for itself and once for its partner.

    Args:
        images_NHWC: as there, as all that follow; on the CPU.
        partner_N: int.
        lam_N: float32.
        box_N4: int32.
        mean: of the three channels.
        std: likewise.
        dtype: of the result.
        out: the result's memory, or None.

    Returns:
        (N, 3, H, W), channels_last.
    """
    rows, height, width, channels = images_NHWC.shape
    if out is None:
        # NumPy asks for huge pages, torch does not: ten thousand page faults less in a batch of 40 MB
        memory = np.empty(images_NHWC.numel() * dtype.itemsize, np.uint8)
        out = torch.from_numpy(memory).view(dtype).view(images_NHWC.shape).permute(0, 3, 1, 2)
    out_NHX = out.permute(0, 2, 3, 1).view(rows, height, width * channels)
    source_NHX = images_NHWC.view(rows, height, width * channels)
    mixer = _BlockMixer(height, width, mean, std)
    partners, lams, boxes = (_numpy(array).tolist() for array in (partner_N, lam_N, box_N4))
    with _one_thread():
        for row, (partner, lam, box) in enumerate(zip(partners, lams, boxes, strict=True)):
            if box[1] > box[0] and box[3] > box[2]:
                mixer.cutmix(out_NHX[row], source_NHX[row], source_NHX[partner], box)
            elif lam == 1:
                mixer.normalize(out_NHX[row], source_NHX[row])
            else:
                mixer.mixup(out_NHX[row], source_NHX[row], source_NHX[partner], lam)
    return out


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch's ops in the calling thread.

    A team of threads would cost more than a block, and the loader's own threads have work already.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _numpy(rows: Rows) -> np.ndarray:
    return rows.numpy() if isinstance(rows, torch.Tensor) else rows


class _BlockMixer:
    """Mixes one image at a time by blocks of lines: X = W × 3 values, so channels vary fastest.

    A block is as large as a second-level cache allows: with smaller ones the calls cost more than the arithmetic.
    """

    BLOCK = 80_000  # values; as float32 320 kB

    def __init__(self, height: int, width: int, mean: Sequence[float], std: Sequence[float]) -> None:
        pieces = -(-height * width * 3 // self.BLOCK)
        lines = -(-height // pieces)
        self.blocks = [slice(y, min(y + lines, height)) for y in range(0, height, lines)]
        # the caller's default dtype and device are no concern of ours
        plain: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
        mean_C, std_C = torch.tensor(mean, **plain), torch.tensor(std, **plain)
        self.scale_X = (1 / (255 * std_C)).repeat(width)
        self.shift_X = (-mean_C / std_C).repeat(width)
        self.own_YX = torch.empty(lines, width * 3, **plain)
        self.other_YX = torch.empty(lines, width * 3, **plain)
        self.lam, self.own_scale_X, self.other_scale_X = 1.0, self.scale_X, torch.zeros_like(self.scale_X)

    def normalize(self, out_HX: torch.Tensor, image_HX: torch.Tensor) -> None:
        for block in self.blocks:
            own_YX = self.own_YX[: block.stop - block.start].copy_(image_HX[block])
            self._affine(out_HX[block], own_YX)

    def cutmix(self, out_HX: torch.Tensor, image_HX: torch.Tensor, other_HX: torch.Tensor, box: list[int]) -> None:
        y0, y1, left, right = box[0], box[1], 3 * box[2], 3 * box[3]
        for block in self.blocks:
            own_YX = self.own_YX[: block.stop - block.start].copy_(image_HX[block])
            top, bottom = max(y0, block.start), min(y1, block.stop)
            if top < bottom:
                part = own_YX[top - block.start : bottom - block.start, left:right]
                part.copy_(other_HX[top:bottom, left:right])
            self._affine(out_HX[block], own_YX)

    def mixup(self, out_HX: torch.Tensor, image_HX: torch.Tensor, other_HX: torch.Tensor, lam: float) -> None:
        if lam != self.lam:  # rows of one group share λ
            self.lam, self.own_scale_X, self.other_scale_X = lam, self.scale_X * lam, self.scale_X * (1 - lam)
        for block in self.blocks:
            own_YX = self.own_YX[: block.stop - block.start].copy_(image_HX[block])
            other_YX = self.other_YX[: block.stop - block.start].copy_(other_HX[block])
            target_YX = out_HX[block] if out_HX.dtype == torch.float32 else own_YX
            torch.addcmul(self.shift_X, own_YX, self.own_scale_X, out=target_YX)
            target_YX.addcmul_(other_YX, self.other_scale_X)
            if target_YX is own_YX:
                out_HX[block] = own_YX

    def _affine(self, out_YX: torch.Tensor, own_YX: torch.Tensor) -> None:
        if out_YX.dtype == torch.float32:
            torch.addcmul(self.shift_X, own_YX, self.scale_X, out=out_YX)
        else:
            out_YX.copy_(torch.addcmul(self.shift_X, own_YX, self.scale_X, out=own_YX))
