"""Mixing and normalizing a batch: uint8 NHWC in, mixed and normalized NCHW (channels last) out, in one go.

Source of the semantics: mixup (Zhang et al. 2018, arXiv 1710.09412), CutMix (Yun et al. 2019, arXiv 1905.04899),
`timm.data.Mixup`. The per-row arrays express timm's batch, pair and elem modes alike. timm's `FastCollateMixup` rounds
a mixup to whole levels before it normalizes; nothing is rounded here.

On a GPU it is one Triton kernel (`mix_kernel.py`), on the CPU blocks in the cache (`mix_cpu.py`).
"""

from collections.abc import Sequence

import numpy as np
import torch

from rsbdali.ops.backend import use_kernels
from rsbdali.ops.mix_cpu import Rows, mix_cpu


def mix_normalize(
    images_NHWC: torch.Tensor,
    partner_N: Rows,
    lam_N: Rows,
    box_N4: Rows,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mix each row with its partner and normalize: (mixed / 255 − mean) / std.

    Row i takes the partner's pixels inside its box (CutMix); where the box is empty it becomes λ·own + (1−λ)·partner
    (mixup; λ = 1 leaves it alone).

    On a GPU nothing waits: arrays of the host go there in one copy from pinned memory. With rows that are on the GPU
    already the call can be captured in a CUDA graph. Least traffic of its memory: `mix_bytes`.

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
        `dtype`, shape (N, 3, H, W), channels_last, on the images' device: within 2e-6 × (1 + |value|) of
        `mix_normalize_reference` before rounding to `dtype`.
    """
    rows = (partner_N, lam_N, box_N4)
    if use_kernels(images_NHWC.device):
        from rsbdali.ops.mix_kernel import mix_fused  # Triton takes a while to import, and a CPU needs none

        if out is None:
            out = _memory(images_NHWC, dtype)
        return mix_fused(images_NHWC, pack(*rows, images_NHWC.device), mean, std, out)
    if images_NHWC.device.type == "cpu":
        return mix_cpu(images_NHWC, *rows, mean, std, dtype, out)
    mixed = mix_normalize_reference(images_NHWC, *rows, mean, std, dtype)
    return mixed if out is None else out.copy_(mixed)


def mix_normalize_reference(
    images_NHWC: torch.Tensor,
    partner_N: Rows,
    lam_N: Rows,
    box_N4: Rows,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
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


def mix_bytes(
    partner_N: np.ndarray,
    lam_N: np.ndarray,
    box_N4: np.ndarray,
    height: int,
    width: int,
    dtype: torch.dtype,
) -> int:
    """Bytes that `mix_normalize` has to read and write: its floor, over the memory's bandwidth.

    (1 or 2)·H·W·3 bytes in a row and itemsize·H·W·3 out. A mixup reads two images; CutMix reads the partner
    inside the box and the row outside, so one in all; λ = 1, λ = 0 and a row mixed with itself read one. Caches can
    take the second reading below this where a row is also another row's partner.

    Args:
        partner_N: as `mix_normalize`; NumPy, as the other rows.
        lam_N: likewise.
        box_N4: likewise.
        height: H, pixels.
        width: W, pixels.
        dtype: of the result.
    """
    rows = len(partner_N)
    boxed_N = (box_N4[:, 1] > box_N4[:, 0]) & (box_N4[:, 3] > box_N4[:, 2])
    mixup_N = ~boxed_N & (lam_N != 0) & (lam_N != 1) & (partner_N != np.arange(rows))
    images_read = rows + int(mixup_N.sum())
    return height * width * 3 * (images_read + dtype.itemsize * rows)


def pack(partner_N: Rows, lam_N: Rows, box_N4: Rows, device: torch.device) -> torch.Tensor:
    """The rows as the kernel takes them: int32 (N, 6) on `device`: partner, λ's bits, y0, y1, x0, x1.

    Rows of the host are put together there, so that one copy, from pinned memory, takes them to a GPU.
    """
    rows = [_tensor(array) for array in (partner_N, lam_N, box_N4)]
    if all(array.device.type == "cpu" for array in rows):
        pinned = device.type == "cuda"
        packed_N6 = torch.empty((len(rows[0]), 6), dtype=torch.int32, device="cpu", pin_memory=pinned)
    else:
        rows = [_on(array, device) for array in rows]
        packed_N6 = torch.empty((len(rows[0]), 6), dtype=torch.int32, device=device)
    packed_N6[:, 0] = rows[0]
    packed_N6[:, 1] = rows[1].float().view(torch.int32)
    packed_N6[:, 2:] = rows[2]
    return packed_N6.to(device, non_blocking=True)


def _memory(images_NHWC: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    rows, height, width, _ = images_NHWC.shape
    shape = (rows, 3, height, width)
    return torch.empty(shape, dtype=dtype, device=images_NHWC.device, memory_format=torch.channels_last)


def _on(rows: Rows, device: torch.device) -> torch.Tensor:
    """The rows on `device`; NumPy rows reach a GPU through pinned memory, without waiting."""
    tensor = _tensor(rows)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _tensor(rows: Rows) -> torch.Tensor:
    """Where the rows are; `torch.as_tensor` would take NumPy's to the caller's default device."""
    return torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows
