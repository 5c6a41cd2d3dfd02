"""The drawing of training images: tiles in rows, each with a caption that says what was done to it.

`preview` shows what a recipe would do, `replay` what a step of a run has done; both draw with this.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from rsbdali.data.index import ImageIndex
from rsbdali.ops.erasing import erase
from rsbdali.ops.mix import mix_normalize
from rsbdali.plan.planner import BatchPlan
from rsbdali.plan.randaugment import BICUBIC, GEOMETRIC, Op
from rsbdali.recipe import Recipe

PAPER, INK, FAINT = (250, 250, 248), (34, 36, 38), (120, 124, 128)
CROP_COLORS = ((230, 80, 60), (40, 130, 210), (60, 160, 90), (200, 140, 30), (140, 90, 190), (30, 160, 165))
MARGIN, GAP, HEADER = 24, 12, 72
TILE_MIN = 150  # smaller training images are drawn enlarged
LINES, LINE = 3, 17  # caption: how many lines, their height
DRAWN = Image.Resampling.NEAREST  # how a training image is enlarged: its pixels can be seen
WITHOUT_ARGUMENT = frozenset({Op.AUTO_CONTRAST, Op.EQUALIZE, Op.INVERT, Op.FLIP_Y})


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
        return cls.of_tiles(recipe, images + mixes(recipe), draws)

    @classmethod
    def of_tiles(cls, recipe: Recipe, rows: int, draws: int) -> "Layout":
        """For so many rows, tiles as large as the recipe's training images or enlarged."""
        height, width = recipe.train_size
        scale = max(1.0, TILE_MIN / width)
        return cls((round(height * scale), round(width * scale)), rows, draws)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the whole picture."""
        width = 2 * MARGIN + (self.draws + 1) * self.tile[1] + self.draws * GAP
        return width, HEADER + self.rows * self.row_height + MARGIN

    @property
    def row_height(self) -> int:
        """Tile, caption and gap."""
        return self.tile[0] + LINES * LINE + GAP + 14

    def cell(self, row: int, column: int) -> tuple[int, int]:
        """(x, y) of a tile's corner; column 0 is the original's."""
        return MARGIN + column * (self.tile[1] + GAP), HEADER + row * self.row_height


def mixes(recipe: Recipe) -> bool:
    """Whether a recipe mixes images at all, or erases parts of them, which comes last."""
    return recipe.mixup > 0 or recipe.cutmix > 0 or recipe.reprob > 0


def write_title(canvas: Image.Image, name: str, recipe: Recipe) -> None:
    """Write a name, and below it what the recipe does to images."""
    draw = ImageDraw.Draw(canvas)
    height, width = recipe.train_size
    draw.text((MARGIN, 14), name, INK, font_of(22))
    facts = f"{height} x {width} px, aa {recipe.aa}, mixup {recipe.mixup:g}, CutMix {recipe.cutmix:g}"
    if recipe.aug_repeats > 1:
        facts += f", {recipe.aug_repeats} repeats"
    draw.text((MARGIN, 40), facts, FAINT, font_of(13))


def mixed_pixels(recipe: Recipe, plan: BatchPlan, images_NHWC: torch.Tensor) -> np.ndarray:
    """What training mixes, normalizes and erases of the batch, turned back into uint8 pixels (N, H, W, 3)."""
    images = mix_normalize(images_NHWC, plan.partner_N, plan.lam_N, plan.box_N4, recipe.mean, recipe.std)
    erase(images, plan.erase_NK4, plan.noise_N, recipe.remode)
    std_C, mean_C = torch.tensor([recipe.std, recipe.mean], dtype=images.dtype, device=images.device)
    values_NHWC = images.permute(0, 2, 3, 1) * std_C + mean_C
    pixels: np.ndarray = (values_NHWC * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels


def original(index: ImageIndex, sample: int, tile: tuple[int, int], crop_N4: np.ndarray) -> Image.Image:
    """A sample's whole image within a tile's bounds (height, width), its crops (n, 4) (y, x, h, w) outlined."""
    with Image.open(BytesIO(index.read_bytes(sample).tobytes())) as opened:
        image = opened.convert("RGB")
    scale = min(tile[1] / image.width, tile[0] / image.height)
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    draw = ImageDraw.Draw(small)
    for k, (y, x, h, w) in enumerate(crop_N4.tolist()):
        corners = [x * scale, y * scale, (x + w) * scale - 1, (y + h) * scale - 1]
        draw.rectangle(corners, outline=CROP_COLORS[k % len(CROP_COLORS)], width=2)
    return small


def put(
    canvas: Image.Image,
    layout: Layout,
    at: tuple[int, int],
    image: Image.Image | None,
    caption: list[str],
    mark: tuple[int, int, int] | None = None,
) -> None:
    """Paste an image (enlarged to the tile where it is a training image) and write its caption below."""
    x, y = layout.cell(*at)
    height, width = layout.tile
    draw = ImageDraw.Draw(canvas)
    if image is not None:
        fitted = image if at[1] == 0 else image.resize((width, height), DRAWN)
        canvas.paste(fitted, (x, y + (height - fitted.height) // 2))
    if mark:
        draw.rectangle([x, y + height + 3, x + width - 1, y + height + 5], fill=mark)
    for k, line in enumerate(caption[:LINES]):
        font = font_of(13)
        draw.text((x, y + height + 9 + k * LINE), _shortened(line, font, width), INK if k == 0 else FAINT, font)


def describe(plan: BatchPlan, row: int) -> list[str]:
    """Caption of one draw: its ops (one line each), then flip and resize filter."""
    names = [
        _op_name(Op(int(op)), float(arg))
        for op, arg in zip(plan.op_NL[row], plan.arg_NL[row], strict=True)
        if op != Op.NONE
    ]
    resized = ("flipped, " if plan.flip_N[row] else "") + ("bicubic" if plan.interp_N[row] == BICUBIC else "bilinear")
    if len(names) >= LINES:  # more layers than lines
        names = [", ".join(names)]
    return [*(names or ["no op"]), resized]


def describe_mix(plan: BatchPlan, row: int) -> str:
    """How a row is mixed, and with what λ."""
    lam = float(plan.lam_N[row])
    how = "CutMix" if plan.box_N4[row].any() else "mixup" if lam < 1 else "left alone"
    return f"{how}, lambda {lam:.2f}"


def _op_name(op: Op, arg: float) -> str:
    name = op.name.replace("_", " ").capitalize()
    if op in WITHOUT_ARGUMENT:
        return name
    units = {Op.ROTATE: f"{arg:+.1f}°", Op.POSTERIZE: f"{arg:.0f} bits", Op.SOLARIZE: f"from {arg:.0f}"}
    units |= dict.fromkeys((Op.TRANSLATE_X_ABS, Op.TRANSLATE_Y_ABS), f"{arg:+.0f} px")
    units |= dict.fromkeys((Op.GAUSSIAN_BLUR, Op.GAUSSIAN_FILTER), f"{arg:.2f} px") | {Op.HUE: f"{arg:+.0%}"}
    if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
        return f"{name} {arg:+.1%}"
    if op in GEOMETRIC:
        return f"{name} {units.get(op, f'{arg:+.3f}')}"
    return f"{name} {units.get(op, f'{arg:.2f}' if op is not Op.SOLARIZE_ADD else f'{arg:+.0f}')}"


def class_name(index: ImageIndex, sample: int) -> str:
    """The class of an image, or its file's name where it has none."""
    label = int(index.label_N[sample])
    return index.classes[label] if label >= 0 else Path(index.path(sample)).name


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font at a size in pixels."""
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
