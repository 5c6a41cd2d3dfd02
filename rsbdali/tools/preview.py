"""`rsbdali preview`: a picture of what a recipe does to a few images, so that people look before they train.

One row an image: the original with its crops drawn in, then its draws as training would make them (the planner's
numbers, an executor's pixels), each with its ops and arguments; below, a row of draws mixed by mixup or CutMix.
"""

import dataclasses
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from rsbdali.atomic import naming
from rsbdali.data.index import ImageIndex
from rsbdali.data.splits import open_split
from rsbdali.distributed.devices import default_threads
from rsbdali.errors import DataError, RecipeError
from rsbdali.loader.decode_mode import create_executor
from rsbdali.plan.planner import BatchPlan, Planner
from rsbdali.recipe import Recipe
from rsbdali.tools.drawing import (
    CROP_COLORS,
    FAINT,
    INK,
    PAPER,
    Layout,
    class_name,
    describe,
    describe_mix,
    font_of,
    mixed_pixels,
    mixes,
    original,
    put,
    write_title,
)


def preview(
    recipe: Recipe,
    data: Path,
    out: Path = Path("preview.png"),
    *,
    images: int = 4,
    draws: int = 4,
) -> Path:
    """Draw the picture and write it as PNG.

    Args:
        recipe: what to show.
        data: DIR/train/<class>/… or DIR/<class>/….
        out: the file to write.
        images: how many images; they are the first of the recipe's first epoch.
        draws: augmentations of each.

    Returns:
        `out`.

    Raises:
        RsbdaliError: no such data, or a recipe that cannot be carried out.
    """
    if out.suffix.lower() != ".png":
        raise RecipeError(f"{out}: the picture is a PNG, so the name must end in .png")
    index = open_split(data, "any")
    images = min(images, len(index))
    plan, images_NHWC = _draw(recipe, index, images, draws)
    layout = Layout.of(recipe, images, draws)
    canvas = Image.new("RGB", layout.size, PAPER)
    write_title(canvas, recipe.name, recipe)
    rows = _rows_by_image(plan)
    for r, row_N in enumerate(rows):
        _image_row(canvas, layout, r, index, plan, images_NHWC, row_N)
    if mixes(recipe):
        _mixed_row(canvas, layout, recipe, index, plan, images_NHWC, rows)
    with naming(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        canvas.save(out)
    return out


def _draw(recipe: Recipe, index: ImageIndex, images: int, draws: int) -> tuple[BatchPlan, torch.Tensor]:
    """A plan of `draws` augmentations for each of `images` images, and its pixels: uint8 (N, H, W, 3)."""
    # repeated augmentation in one mix group is just that; λ by element, so that the mixed row shows several
    asked = dataclasses.replace(
        recipe,
        global_batch_size=images * draws,
        mix_groups=1,
        micro_batch_size=None,
        aug_repeats=draws,
        aug_repeats_mode="decode_once",
        mixup_mode="elem",
        mixup_off_epoch=0,
    )
    width_N, height_N = index.width_N, index.height_N
    if len(index) < images * draws:  # an epoch must hold a batch: let the planner see the few images several times
        copies = -(-images * draws // len(index))
        width_N, height_N = np.tile(width_N, copies), np.tile(height_N, copies)
    plan = Planner(width_N, height_N, asked).group(0, 0, 0)
    plan = dataclasses.replace(plan, sample_N=plan.sample_N % len(index))
    device = torch.device("cpu")
    runner = create_executor("cpu", index, asked, rows=len(plan), device=device, num_threads=default_threads())
    with closing(runner):
        runner.submit(plan)
        images_NHWC, bad = runner.collect()
    for row, reason in bad.items():
        path = index.path(int(plan.sample_N[row]))
        raise DataError(f"{path} does not decode (training would replace it): {reason}")
    return plan, images_NHWC


def _rows_by_image(plan: BatchPlan) -> list[np.ndarray]:
    """Rows of the plan for each image, images in the order of their first row."""
    first: dict[int, list[int]] = {}
    for row, sample in enumerate(plan.sample_N.tolist()):
        first.setdefault(sample, []).append(row)
    return [np.array(rows) for rows in first.values()]


def _image_row(
    canvas: Image.Image,
    layout: Layout,
    row: int,
    index: ImageIndex,
    plan: BatchPlan,
    images_NHWC: torch.Tensor,
    row_N: np.ndarray,
) -> None:
    sample = int(plan.sample_N[row_N[0]])
    whole = original(index, sample, layout.tile, plan.crop_N4[row_N])
    caption = [class_name(index, sample), f"{index.width_N[sample]} x {index.height_N[sample]} px"]
    put(canvas, layout, (row, 0), whole, caption)
    for column, i in enumerate(row_N[: layout.draws], start=1):
        tile = Image.fromarray(images_NHWC[i].numpy())
        color = CROP_COLORS[(column - 1) % len(CROP_COLORS)]
        put(canvas, layout, (row, column), tile, describe(plan, int(i)), color)


def _mixed_row(
    canvas: Image.Image,
    layout: Layout,
    recipe: Recipe,
    index: ImageIndex,
    plan: BatchPlan,
    images_NHWC: torch.Tensor,
    rows: list[np.ndarray],
) -> None:
    mixed_NHWC = mixed_pixels(recipe, plan, images_NHWC)
    shown = _interesting(plan, rows, layout.draws)
    put(canvas, layout, (layout.rows - 1, 0), None, [])
    x, y = layout.cell(layout.rows - 1, 0)
    lines = ["mixed", "", "as the model gets", "them; each tile has", "a draw of its own,"]
    lines += ["in training each", f"{recipe.mixup_mode if recipe.mixup_mode != 'batch' else 'mix group'}"]
    draw = ImageDraw.Draw(canvas)
    for k, line in enumerate(lines):
        draw.text((x, y + 20 + 18 * k), line, INK if k == 0 else FAINT, font_of(18 if k == 0 else 13))
    for column, i in enumerate(shown, start=1):
        partner = int(plan.partner_N[i])
        own, other = (class_name(index, int(plan.sample_N[r])) for r in (i, partner))
        lam = float(plan.lam_N[i])
        caption = [describe_mix(plan, i), f"{lam:.2f} {own}", f"{1 - lam:.2f} {other}"]
        put(canvas, layout, (layout.rows - 1, column), Image.fromarray(mixed_NHWC[i]), caption)


def _interesting(plan: BatchPlan, rows: list[np.ndarray], count: int) -> list[int]:
    """Rows whose mix can be seen (λ far from 0 and 1) first, CutMix and mixup in turn."""
    seen = sorted(np.concatenate(rows).tolist(), key=lambda i: abs(float(plan.lam_N[i]) - 0.6))
    boxed = [i for i in seen if plan.box_N4[i].any()]
    blended = [i for i in seen if not plan.box_N4[i].any()]
    turns = [i for pair in zip(boxed, blended, strict=False) for i in pair]
    return [*turns, *(i for i in seen if i not in turns)][:count]
