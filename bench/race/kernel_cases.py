"""What bench.kernels measures: each op on noise of training's shapes, with the bytes that it has to move at least."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from rsbdali.ops.bce import bce_bytes, bce_loss
from rsbdali.ops.equalize import equalize
from rsbdali.ops.lamb import lamb_bytes
from rsbdali.ops.mix import mix_bytes, mix_normalize
from rsbdali.ops.randaugment import randaugment
from rsbdali.ops.randaugment_reference import randaugment_reference
from rsbdali.ops.warp import affine_matrices, warp
from rsbdali.plan.planner import BatchPlan, Planner
from rsbdali.plan.randaugment import FILL_RGB, Op
from rsbdali.recipe import Recipe
from rsbdali.training.model import create_model
from rsbdali.training.optim import create_optimizer
from rsbdali.training.precision import name_of

DTYPES = torch.float16, torch.bfloat16, torch.float32
NUM_CLASSES = 1000
ROTATED_BYTES = {"cuda": 1 << 29, "cpu": 0}  # inputs in turn, ten times the largest second-level cache
MOST_COPIES = 64
CHECKED_ROWS = 64
MixRows = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op to measure.

    Attributes:
        name: the op, and how it is called.
        dtype: of its result.
        bytes: that it has to read and write.
        calls: the same work on different memory.
        wrong: looks whether it is right, before it is timed: what is wrong, None if nothing is.
    """

    name: str
    dtype: str
    bytes: int
    calls: list[Callable[[], object]]
    wrong: Callable[[], str | None] = lambda: None


def cases(recipe: Recipe, rows: int, device: torch.device, only: str | None = None) -> Iterator[Case]:
    """All cases, one after the other; each is built when it is its turn, and its memory is free afterwards.

    Args:
        recipe: train size, mean, std, RandAugment, loss, model and optimizer.
        rows: N of a batch.
        device: where.
        only: one of `GROUPS`; None for all.
    """
    for name, group in GROUPS.items():
        if only in (None, name):
            yield from group(recipe, rows, device)


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


def _randaugments(recipe: Recipe, rows: int, device: torch.device) -> Iterator[Case]:
    height, width = recipe.train_size
    nbytes = 2 * 3 * rows * height * width  # each pixel read once and written once, however many layers there are
    plan = _plan(recipe, rows)
    images = [_noise(rows, recipe, device) for _ in range(_copies(nbytes, device))]
    yield Case(
        name="RandAugment and flip",
        dtype="uint8",
        bytes=nbytes,
        calls=[partial(_augmented, randaugment, batch, plan) for batch in images],
        wrong=lambda: _unlike_pillow(images[0][:CHECKED_ROWS], plan.rows(slice(CHECKED_ROWS))),
    )


def _plan(recipe: Recipe, rows: int) -> BatchPlan:
    """What the recipe draws for one batch."""
    sides = np.full(rows, 500, np.int32), np.full(rows, 375, np.int32)
    return Planner(*sides, replace(recipe, global_batch_size=rows, mix_groups=1, aug_repeats=0)).group(0, 0, 0)


def _augmented(augment: Callable[..., torch.Tensor], images_NHWC: torch.Tensor, plan: BatchPlan) -> torch.Tensor:
    rows = plan.flip_N, plan.op_NL, plan.arg_NL, plan.op_interp_NL
    return augment(images_NHWC, *rows, fill=FILL_RGB)


def _unlike_pillow(images_NHWC: torch.Tensor, plan: BatchPlan) -> str | None:
    """In how many rows the op's pixels differ from Pillow's, and by which RandAugment ops."""
    ours, pillows = (_augmented(augment, images_NHWC, plan) for augment in (randaugment, randaugment_reference))
    unlike_N = (ours != pillows).flatten(1).any(dim=1).cpu().numpy()
    if not unlike_N.any():
        return None
    found = ", ".join(sorted({Op(op).name for op in plan.op_NL[unlike_N].ravel() if op != Op.NONE})) or "the flip"
    return f"{unlike_N.sum()} of {len(unlike_N)} rows differ from Pillow's, with {found}"


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


def _optimizers(recipe: Recipe, _: int, device: torch.device) -> Iterator[Case]:
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


GROUPS: dict[str, Callable[[Recipe, int, torch.device], Iterator[Case]]] = {
    "randaugment": _randaugments,
    "mix": _mixes,
    "bce": _losses,
    "lamb": _optimizers,
    "warp": _image_ops,
}
