"""Mixing and normalising a batch: uint8 NHWC in, mixed and normalised NCHW (channels last) out, in one go.

Source of the semantics: mixup (Zhang et al. 2018, arXiv 1710.09412), CutMix (Yun et al. 2019, arXiv 1905.04899),
`timm.data.Mixup`. The per-row arrays express timm's batch, pair and elem modes alike. timm's `FastCollateMixup` rounds
a mixup to whole levels before it normalises; nothing is rounded here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

Rows = np.ndarray | torch.Tensor


def mix_normalize(
    images_NHWC: torch.Tensor, partner_N: Rows, lam_N: Rows, box_N4: Rows, mean: Sequence[float],
    std: Sequence[float], dtype: torch.dtype = torch.float32, out: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Mix each row with its partner and normalise: (mixed / 255 − mean) / std.

    Row i takes the partner's pixels inside its box (CutMix); where the box is empty it becomes λ·own + (1−λ)·partner
    (mixup; λ = 1 leaves it alone).

    Args:
        images_NHWC: uint8, shape (N, H, W, 3), contiguous.
        partner_N: int, shape (N,), row that is mixed in.
        lam_N: float32, shape (N,), λ.
        box_N4: int32, shape (N, 4): (y0, y1, x0, x1), half-open, in pixels; all zero where there is no box.
        mean: of the three channels, as a share of 255.
        std: likewise.
        dtype: of the result; arithmetic is float32 whatever it is.
        out: the result's memory, as this function shapes it; made when None. Memory used before (see
            `pipelines.buffers.BufferPool`) saves a quarter of the time on the CPU.

    Returns:
        `dtype`, shape (N, 3, H, W), channels_last, on the images' device. On the CPU it is within 2e-6 × (1 + |value|)
        of `mix_normalize_reference` before rounding to `dtype`.
    """
    if images_NHWC.device.type == "cpu":
        return _mix_normalize_cpu(images_NHWC, partner_N, lam_N, box_N4, mean, std, dtype, out)
    mixed = mix_normalize_reference(images_NHWC, partner_N, lam_N, box_N4, mean, std, dtype)
    return mixed if out is None else out.copy_(mixed)


def mix_normalize_reference(
    images_NHWC: torch.Tensor, partner_N: Rows, lam_N: Rows, box_N4: Rows, mean: Sequence[float],
    std: Sequence[float], dtype: torch.dtype = torch.float32,
) -> torch.Tensor:  # fmt: skip
    """`mix_normalize` in plain torch, on any device: the meaning, not the fast way."""
    device = images_NHWC.device
    partner_N, lam_N, box_N4 = (_on(rows, device) for rows in (partner_N, lam_N, box_N4))
    scale_C = torch.tensor(std, device=device, dtype=torch.float32)
    shift_C = torch.tensor(mean, device=device, dtype=torch.float32)
    own_NHWC = (images_NHWC.float() / 255 - shift_C) / scale_C
    other_NHWC = own_NHWC[partner_N.long()]
    _, height, width, _ = images_NHWC.shape
    y0_N, y1_N, x0_N, x1_N = box_N4[:, :, None].unbind(1)
    y_H, x_W = torch.arange(height, device=device), torch.arange(width, device=device)
    inside_NH, inside_NW = (y_H >= y0_N) & (y_H < y1_N), (x_W >= x0_N) & (x_W < x1_N)
    inside_NHW1 = (inside_NH[:, :, None] & inside_NW[:, None, :])[..., None]
    boxed_N111 = ((y1_N > y0_N) & (x1_N > x0_N))[:, :, None, None]
    lam_N111 = lam_N.float()[:, None, None, None]
    mixup_NHWC = own_NHWC * lam_N111 + other_NHWC * (1 - lam_N111)
    mixed_NHWC = torch.where(boxed_N111, torch.where(inside_NHW1, other_NHWC, own_NHWC), mixup_NHWC)
    return mixed_NHWC.to(dtype).permute(0, 3, 1, 2)


def _on(rows: Rows, device: torch.device) -> torch.Tensor:
    """The rows on `device`; NumPy rows reach a GPU through pinned memory, without waiting."""
    tensor = torch.as_tensor(rows)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _mix_normalize_cpu(
    images_NHWC: torch.Tensor, partner_N: Rows, lam_N: Rows, box_N4: Rows, mean: Sequence[float],
    std: Sequence[float], dtype: torch.dtype, out: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """Block by block in the cache, each pixel converted once for itself and once for its partner."""
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
        self.scale_X = (1 / (255 * torch.tensor(std))).repeat(width)
        self.shift_X = (-torch.tensor(mean) / torch.tensor(std)).repeat(width)
        self.own_YX = torch.empty(lines, width * 3)
        self.other_YX = torch.empty(lines, width * 3)
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
