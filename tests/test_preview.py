"""The preview is a picture of the right size that shows the plan's own pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.common import Tree
from rsbdali.errors import DataError, RecipeError
from rsbdali.plan.planner import BatchPlan, Planner
from rsbdali.plan.randaugment import BICUBIC, Op
from rsbdali.recipe import Recipe
from rsbdali.tools.preview import Layout, describe, preview

SMALL = {"img_size": "32", "test_img_size": "32"}


def test_preview_writes_a_picture_of_the_stated_size(image_tree: Tree, tmp_path: Path) -> None:
    recipe = Recipe.load("a3", SMALL)
    image_tree()
    out = preview(recipe, tmp_path / "data", tmp_path / "new" / "grid.png", images=3, draws=4)
    layout = Layout.of(recipe, 3, 4)
    assert layout.rows == 4  # three images and the mixed row
    with Image.open(out) as image:
        assert image.size == layout.size
        pixels = np.asarray(image)
    for row in range(layout.rows):
        x, y = layout.cell(row, 2)
        tile = pixels[y : y + layout.tile[0], x : x + layout.tile[1]]
        assert len(np.unique(tile.reshape(-1, 3), axis=0)) > 3  # something is drawn there


def test_fewer_images_than_asked_for_and_no_mixing(image_tree: Tree, tmp_path: Path) -> None:
    recipe = Recipe.load("a3", {**SMALL, "mixup": "0", "cutmix": "0", "aa": "none"})
    root = image_tree(classes=1, per_class=2)
    out = preview(recipe, root, tmp_path / "grid.png", images=5, draws=3)
    with Image.open(out) as image:
        assert image.size == Layout.of(recipe, 2, 3).size


def test_mistakes_are_one_line(image_tree: Tree, tmp_path: Path) -> None:
    recipe = Recipe.load("a3", SMALL)
    with pytest.raises(RecipeError, match=r"must end in \.png"):
        preview(recipe, tmp_path, tmp_path / "grid.gif")
    with pytest.raises(DataError, match="no such folder"):
        preview(recipe, tmp_path / "nowhere", tmp_path / "grid.png")


@pytest.mark.parametrize(
    ("op", "arg", "said"),
    [
        (Op.ROTATE, -18.84, "Rotate -18.8°"),
        (Op.POSTERIZE, 2.0, "Posterize 2 bits"),
        (Op.SOLARIZE, 104.0, "Solarize from 104"),
        (Op.SOLARIZE_ADD, 67.0, "Solarize add +67"),
        (Op.COLOR, 0.4, "Color 0.40"),
        (Op.SHEAR_X, 0.198, "Shear x +0.198"),
        (Op.TRANSLATE_Y, -0.25, "Translate y -25.0%"),
        (Op.EQUALIZE, 0.0, "Equalize"),
    ],
)
def test_captions_say_op_and_argument(op: Op, arg: float, said: str) -> None:
    assert describe(with_op(op, arg), 0) == [said, "flipped, bicubic"]


def test_caption_without_ops() -> None:
    assert describe(with_op(Op.NONE, 0.0), 0) == ["no op", "flipped, bicubic"]


def with_op(op: Op, arg: float) -> BatchPlan:
    recipe = Recipe.load("a3", {"global_batch_size": "4"})
    plan = Planner(np.full(4, 50, np.int32), np.full(4, 60, np.int32), recipe).batch(0, 0)
    plan.op_NL[0], plan.arg_NL[0] = (op, Op.NONE), (arg, 0.0)
    plan.flip_N[0], plan.interp_N[0] = True, BICUBIC
    return plan
