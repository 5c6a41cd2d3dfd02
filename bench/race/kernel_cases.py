"""What bench.kernels measures: each op on noise of training's shapes, with the bytes that it has to move at least."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from rsbdali.ops.bce import bce_bytes, bce_loss
from rsbdali.ops.equalize import equalize
from rsbdali.ops.lamb import lamb_bytes
from rsbdali.ops.mix import mix_bytes, mix_normalize
from rsbdali.ops.warp import affine_matrices, warp
from rsbdali.plan.randaugment import Op
from rsbdali.recipe import Recipe
from rsbdali.training.model import create_model
from rsbdali.training.optim import create_optimizer
from rsbdali.training.precision import name_of

DTYPES = torch.float16, torch.bfloat16, torch.float32
NUM_CLASSES = 1000
ROTATED_BYTES = {"cuda": 1 << 29, "cpu": 0}  # inputs in turn, ten times the largest second-level cache
MOST_COPIES = 64
MixRows = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op to measure.

    Attributes:
        name: the op, and how it is called.
        dtype: of its result.
        bytes: that it has to read and write.
        calls: the same work on different memory.
    """

    name: str
    dtype: str
    bytes: int
    calls: list[Callable[[], object]]


def cases(recipe: Recipe, rows: int, device: torch.device) -> Iterator[Case]:
    """All cases, one after the other; each is built when it is its turn, and its memory is free afterwards.

    Args:
        recipe: train size, mean, std, loss, model and optimiser.
        rows: N of a batch.
        device: where.
    """
    yield from _mixes(recipe, rows, device)
    yield from _losses(recipe, rows, device)
    yield from _optimisers(recipe, device)
    yield from _image_ops(recipe, rows, device)


def _copies(nbytes: int, device: torch.device) -> int:
    return max(1, min(MOST_COPIES, math.ceil(ROTATED_BYTES[device.type] / nbytes)))


def mix_rows(kind: str, rows: int, height: int, width: int) -> MixRows:
    """partner_N, lam_N and box_N4 of a batch all of whose rows are plain, mixed up, or cut (a box of a quarter)."""
    partner_N = np.arange(rows - 1, -1, -1, dtype=np.int32)
    lam_N = np.full(rows, {"plain": 1.0, "mixup": 0.7, "cutmix": 0.75}[kind], np.float32)
    box = (height // 4, height - height // 4, width // 4, width - width // 4) if kind == "cutmix" else (0,) * 4
    return partner_N, lam_N, np.tile(np.array(box, np.int32), (rows, 1))


def _noise(rows: int, recipe: Recipe, device: torch.device) -> torch.Tensor:
    return torch.randint(256, (rows, *recipe.train_size, 3), dtype=torch.uint8, device=device)


def _mixes(recipe: Recipe, rows: int, device: torch.device) -> Iterator[Case]:
    height, width = recipe.train_size
    for kind in ("plain", "mixup", "cutmix"):
        mix = mix_rows(kind, rows, height, width)
        partner_N, lam_N, box_N4 = mix
        for dtype in DTYPES:
            nbytes = mix_bytes(partner_N, lam_N, box_N4, height, width, dtype)
            calls = [_mix_call(recipe, rows, mix, dtype, device) for _ in range(_copies(nbytes, device))]
            yield Case(name=f"mix, {kind}", dtype=name_of(dtype), bytes=nbytes, calls=calls)


def _mix_call(
    recipe: Recipe, rows: int, mix: MixRows, dtype: torch.dtype, device: torch.device
) -> Callable[[], object]:
    images_NHWC, shape = _noise(rows, recipe, device), (rows, 3, *recipe.train_size)
    out = torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)
    partner_N, lam_N, box_N4 = mix
    return lambda: mix_normalize(images_NHWC, partner_N, lam_N, box_N4, recipe.mean, recipe.std, dtype, out)


def _losses(recipe: Recipe, rows: int, device: torch.device) -> Iterator[Case]:
    label_N, partner_N = (torch.randint(NUM_CLASSES, (rows,), device=device) for _ in range(2))
    lam_N = torch.rand(rows, device=device)
    smoothing, threshold = recipe.smoothing, recipe.bce_target_thresh

    def call(dtype: torch.dtype) -> Callable[[], object]:
        logits_NC = torch.randn(rows, NUM_CLASSES, device=device).to(dtype).requires_grad_()

        def both() -> object:
            loss = bce_loss(logits_NC, label_N, partner_N, lam_N, smoothing=smoothing, threshold=threshold)
            return torch.autograd.grad(loss, logits_NC)

        return both

    for dtype in DTYPES:
        nbytes = bce_bytes(rows, NUM_CLASSES, dtype)
        calls = [call(dtype) for _ in range(_copies(nbytes, device))]
        yield Case(name="BCE, forward and backward", dtype=name_of(dtype), bytes=nbytes, calls=calls)


def _optimisers(recipe: Recipe, device: torch.device) -> Iterator[Case]:
    from timm.optim import create_optimizer_v2

    model = create_model(recipe, NUM_CLASSES).to(device)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    nbytes = lamb_bytes(model.parameters())
    ours = create_optimizer(model, recipe)
    yield Case(name=f"{recipe.opt} on {recipe.model}", dtype="float32", bytes=nbytes, calls=[ours.step])
    del ours
    timms = create_optimizer_v2(model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay)
    yield Case(name=f"{recipe.opt} on {recipe.model}, timm's", dtype="float32", bytes=nbytes, calls=[timms.step])


def _image_ops(recipe: Recipe, rows: int, device: torch.device) -> Iterator[Case]:
    height, width = recipe.train_size
    nbytes = 2 * 3 * rows * height * width
    degrees_N = np.linspace(-20, 20, rows)
    matrix_N6 = torch.from_numpy(affine_matrices(np.full(rows, Op.ROTATE), degrees_N, (height, width))).to(device)
    for name, cubic in (("bilinear", False), ("bicubic", True)):
        images = [_noise(rows, recipe, device) for _ in range(_copies(nbytes, device))]
        calls = [_warp_call(batch, matrix_N6, cubic=cubic) for batch in images]
        yield Case(name=f"warp, {name}", dtype="uint8", bytes=nbytes, calls=calls)
    calls = [lambda batch=batch: equalize(batch) for batch in images]  # type: ignore[misc]
    yield Case(name="equalize", dtype="uint8", bytes=nbytes, calls=calls)


def _warp_call(images_NHWC: torch.Tensor, matrix_N6: torch.Tensor, *, cubic: bool) -> Callable[[], object]:
    if images_NHWC.is_cuda:
        from rsbdali.ops.warp_kernel import warp_fused

        cubic_N = torch.full((len(images_NHWC),), cubic, device=images_NHWC.device)
        return lambda: warp_fused(images_NHWC, matrix_N6, cubic_N)
    return lambda: warp(images_NHWC, matrix_N6, cubic=cubic)
