"""`rsbdali preview`: a picture of what a recipe does to a few images, so that people look before they train.

One row an image: the original with its crops drawn in, then its draws as training would make them (the planner's
numbers, an executor's pixels), each with its ops and arguments; below, a row of draws mixed by mixup or CutMix.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from rsbdali.errors import DataError, RecipeError
from rsbdali.index import ImageIndex, find_images
from rsbdali.loader import create_executor, default_threads
from rsbdali.ops.mix import mix_normalize
from rsbdali.pipelines.executor import DecodeFailure
from rsbdali.plan import BatchPlan, Planner
from rsbdali.policy import BICUBIC, GEOMETRIC, Op
from rsbdali.recipe import Recipe

PAPER, INK, FAINT = (250, 250, 248), (34, 36, 38), (120, 124, 128)
CROP_COLOURS = ((230, 80, 60), (40, 130, 210), (60, 160, 90), (200, 140, 30), (140, 90, 190), (30, 160, 165))
MARGIN, GAP, HEADER = 24, 12, 72
TILE_MIN = 150  # smaller training images are drawn enlarged
LINES, LINE = 3, 17  # caption: how many lines, their height
WITHOUT_ARGUMENT = frozenset({Op.AUTO_CONTRAST, Op.EQUALIZE, Op.INVERT})


@dataclass(frozen=True)
class Layout:
    """Sizes of the picture in pixels: `rows` of one original and `draws` tiles each.

    Attributes:
        tile: (height, width) of one drawn image.
        rows: of images, the mixed row included.
        draws: tiles a row, the original not counted.
    """

    tile: tuple[int, int]
    rows: int
    draws: int

    @classmethod
    def of(cls, recipe: Recipe, images: int, draws: int) -> "Layout":
        """For `images` images, plus a mixed row where the recipe mixes."""
        height, width = recipe.train_size
        scale = max(1.0, TILE_MIN / width)
        return cls((round(height * scale), round(width * scale)), images + _mixes(recipe), draws)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the whole picture."""
        width = 2 * MARGIN + (self.draws + 1) * self.tile[1] + self.draws * GAP
        return width, HEADER + self.rows * self.row_height + MARGIN

    @property
    def row_height(self) -> int:
        """Tile, caption and gap."""
        return self.tile[0] + LINES * LINE + GAP + 14

    def place(self, row: int, column: int) -> tuple[int, int]:
        """(x, y) of a tile's corner; column 0 is the original's."""
        return MARGIN + column * (self.tile[1] + GAP), HEADER + row * self.row_height


def preview(
    recipe: Recipe, data: Path, out: Path = Path("preview.png"), *, images: int = 4, draws: int = 4,
    executor: str = "auto",
) -> Path:  # fmt: skip
    """Draw the picture and write it as PNG.

    Args:
        recipe: what to show.
        data: DIR/train/<class>/… or DIR/<class>/….
        out: the file to write.
        images: how many images; they are the first of the recipe's first epoch.
        draws: augmentations of each.
        executor: auto, graph or host.

    Returns:
        `out`.

    Raises:
        RsbdaliError: no such data, or a recipe that cannot be carried out.
    """
    if out.suffix.lower() != ".png":
        raise RecipeError(f"--out {out}: the picture is a PNG, so the name must end in .png")
    index = ImageIndex.load(find_images(data))
    images = min(images, len(index))
    plan, images_NHWC = _draw(recipe, index, images, draws, executor)
    layout = Layout.of(recipe, images, draws)
    canvas = Image.new("RGB", layout.size, PAPER)
    _title(canvas, recipe)
    rows = _rows_by_image(plan)
    for r, row_N in enumerate(rows):
        _image_row(canvas, layout, r, index, plan, images_NHWC, row_N)
    if _mixes(recipe):
        _mixed_row(canvas, layout, recipe, index, plan, images_NHWC, rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(out)
    return out


def _mixes(recipe: Recipe) -> bool:
    return recipe.mixup > 0 or recipe.cutmix > 0


def _draw(
    recipe: Recipe, index: ImageIndex, images: int, draws: int, executor: str
) -> tuple[BatchPlan, torch.Tensor]:
    """A plan of `draws` augmentations for each of `images` images, and its pixels: uint8 (N, H, W, 3)."""
    # repeated augmentation in one mix group is just that; λ by element, so that the mixed row shows several
    asked = dataclasses.replace(
        recipe, global_batch_size=images * draws, mix_groups=1, batch_size=None, aug_repeats=draws,
        aug_repeats_mode="local", mixup_mode="elem", mixup_off_epoch=0,
    )  # fmt: skip
    width_N, height_N = index.width_N, index.height_N
    if len(index) < images * draws:  # an epoch must hold a batch: let the planner see the few images several times
        copies = -(-images * draws // len(index))
        width_N, height_N = np.tile(width_N, copies), np.tile(height_N, copies)
    plan = Planner(width_N, height_N, asked).group(0, 0, 0)
    plan = dataclasses.replace(plan, sample_N=plan.sample_N % len(index))
    device = torch.device("cpu")
    runner = create_executor(
        executor, index, asked, rows=len(plan), device=device, num_threads=default_threads(), prefetch=1
    )
    try:
        runner.submit(plan)
        return plan, runner.collect()
    except DecodeFailure as failure:
        raise DataError(f"{index.root}: an image does not decode (training would replace it): {failure}") from failure
    finally:
        runner.close()


def _rows_by_image(plan: BatchPlan) -> list[np.ndarray]:
    """Rows of the plan for each image, images in the order of their first row."""
    first: dict[int, list[int]] = {}
    for row, sample in enumerate(plan.sample_N.tolist()):
        first.setdefault(sample, []).append(row)
    return [np.array(rows) for rows in first.values()]


def _title(canvas: Image.Image, recipe: Recipe) -> None:
    draw = ImageDraw.Draw(canvas)
    height, width = recipe.train_size
    draw.text((MARGIN, 14), f"{recipe.name}", INK, _font(22))
    facts = f"{height} x {width} px, aa {recipe.aa}, mixup {recipe.mixup:g}, CutMix {recipe.cutmix:g}"
    if recipe.aug_repeats > 1:
        facts += f", {recipe.aug_repeats} repeats"
    draw.text((MARGIN, 40), facts, FAINT, _font(13))


def _image_row(
    canvas: Image.Image, layout: Layout, row: int, index: ImageIndex, plan: BatchPlan, images_NHWC: torch.Tensor,
    row_N: np.ndarray,
) -> None:  # fmt: skip
    sample = int(plan.sample_N[row_N[0]])
    original = _original(index, sample, layout.tile, plan.crop_N4[row_N])
    caption = [_class_name(index, sample), f"{index.width_N[sample]} x {index.height_N[sample]} px"]
    _put(canvas, layout, (row, 0), original, caption)
    for column, i in enumerate(row_N[: layout.draws], start=1):
        tile = Image.fromarray(images_NHWC[i].numpy())
        colour = CROP_COLOURS[(column - 1) % len(CROP_COLOURS)]
        _put(canvas, layout, (row, column), tile, describe(plan, int(i)), colour)


def _mixed_row(
    canvas: Image.Image, layout: Layout, recipe: Recipe, index: ImageIndex, plan: BatchPlan,
    images_NHWC: torch.Tensor, rows: list[np.ndarray],
) -> None:  # fmt: skip
    mixed_NHWC = _mixed_pixels(recipe, plan, images_NHWC)
    shown = _interesting(plan, rows, layout.draws)
    _put(canvas, layout, (layout.rows - 1, 0), None, [])
    x, y = layout.place(layout.rows - 1, 0)
    lines = ["mixed", "", "as the model gets", "them; each tile has", "a draw of its own,"]
    lines += ["in training each", f"{recipe.mixup_mode if recipe.mixup_mode != 'batch' else 'mix group'}"]
    draw = ImageDraw.Draw(canvas)
    for k, line in enumerate(lines):
        draw.text((x, y + 20 + 18 * k), line, INK if k == 0 else FAINT, _font(18 if k == 0 else 13))
    for column, i in enumerate(shown, start=1):
        partner = int(plan.partner_N[i])
        own, other = (_class_name(index, int(plan.sample_N[r])) for r in (i, partner))
        lam = float(plan.lam_N[i])
        how = "CutMix" if plan.box_N4[i].any() else "mixup" if lam < 1 else "left alone"
        caption = [f"{how}, lambda {lam:.2f}", f"{lam:.2f} {own}", f"{1 - lam:.2f} {other}"]
        _put(canvas, layout, (layout.rows - 1, column), Image.fromarray(mixed_NHWC[i]), caption)


def _mixed_pixels(recipe: Recipe, plan: BatchPlan, images_NHWC: torch.Tensor) -> np.ndarray:
    """What training's `mix_normalize` makes of the batch, turned back into uint8 pixels (N, H, W, 3)."""
    images = mix_normalize(images_NHWC, plan.partner_N, plan.lam_N, plan.box_N4, recipe.mean, recipe.std)
    values_NHWC = images.permute(0, 2, 3, 1) * torch.tensor(recipe.std) + torch.tensor(recipe.mean)
    pixels: np.ndarray = (values_NHWC * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels


def _interesting(plan: BatchPlan, rows: list[np.ndarray], count: int) -> list[int]:
    """Rows whose mix can be seen (λ far from 0 and 1) first, CutMix and mixup in turn."""
    seen = sorted(np.concatenate(rows).tolist(), key=lambda i: abs(float(plan.lam_N[i]) - 0.6))
    boxed = [i for i in seen if plan.box_N4[i].any()]
    blended = [i for i in seen if not plan.box_N4[i].any()]
    turns = [i for pair in zip(boxed, blended, strict=False) for i in pair]
    return [*turns, *(i for i in seen if i not in turns)][:count]


def _original(index: ImageIndex, sample: int, tile: tuple[int, int], crop_N4: np.ndarray) -> Image.Image:
    """The whole image within a tile's bounds, the crops outlined."""
    with Image.open(index.source_path(sample)) as opened:
        image = opened.convert("RGB")
    scale = min(tile[1] / image.width, tile[0] / image.height)
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    draw = ImageDraw.Draw(small)
    for k, (y, x, h, w) in enumerate(crop_N4.tolist()):
        corners = [x * scale, y * scale, (x + w) * scale - 1, (y + h) * scale - 1]
        draw.rectangle(corners, outline=CROP_COLOURS[k % len(CROP_COLOURS)], width=2)
    return small


def _put(
    canvas: Image.Image, layout: Layout, at: tuple[int, int], image: Image.Image | None, caption: list[str],
    mark: tuple[int, int, int] | None = None,
) -> None:  # fmt: skip
    """Paste an image (enlarged to the tile where it is a training image) and write its caption below."""
    x, y = layout.place(*at)
    height, width = layout.tile
    draw = ImageDraw.Draw(canvas)
    if image is not None:
        fitted = image if at[1] == 0 else image.resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(fitted, (x, y + (height - fitted.height) // 2))
    if mark:
        draw.rectangle([x, y + height + 3, x + width - 1, y + height + 5], fill=mark)
    for k, line in enumerate(caption[:LINES]):
        font = _font(13)
        draw.text((x, y + height + 9 + k * LINE), _shortened(line, font, width), INK if k == 0 else FAINT, font)


def describe(plan: BatchPlan, row: int) -> list[str]:
    """Caption of one draw: its ops (one line each), then flip and resize filter."""
    names = [
        _op_name(Op(int(op)), float(arg), int(interp))
        for op, arg, interp in zip(plan.op_NL[row], plan.arg_NL[row], plan.op_interp_NL[row], strict=True)
        if op != Op.NONE
    ]
    resized = ("flipped, " if plan.flip_N[row] else "") + ("bicubic" if plan.interp_N[row] == BICUBIC else "bilinear")
    if len(names) >= LINES:  # more layers than lines
        names = [", ".join(names)]
    return [*(names or ["no op"]), resized]


def _op_name(op: Op, arg: float, interp: int) -> str:
    name = op.name.replace("_", " ").capitalize()
    if op in WITHOUT_ARGUMENT:
        return name
    units = {Op.ROTATE: f"{arg:+.1f}°", Op.POSTERIZE: f"{arg:.0f} bits", Op.SOLARIZE: f"from {arg:.0f}"}
    if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
        return f"{name} {arg:+.1%}"
    if op in GEOMETRIC:
        return f"{name} {units.get(op, f'{arg:+.3f}')}"
    return f"{name} {units.get(op, f'{arg:.2f}' if op is not Op.SOLARIZE_ADD else f'{arg:+.0f}')}"


def _class_name(index: ImageIndex, sample: int) -> str:
    label = int(index.label_N[sample])
    return index.classes[label] if label >= 0 else Path(index.path(sample)).name


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
