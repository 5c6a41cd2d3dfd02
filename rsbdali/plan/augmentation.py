"""What happens to the pixels of a resized image besides the horizontal flip, as layers of ops in timm's order.

    flip upside down → the `aa` policy → color jitter → grayscale → blur        (timm's `transforms_imagenet_train`)

Each is drawn from a stream of its own, so that one more leaves the others as they were, and carried out by the same
code as RandAugment: an upside-down flip is a warp, gray is Color with factor 0, jitter is Brightness, Contrast and
Color in a random order. A layer costs a pass over the images on a GPU.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rsbdali.bounded import shown
from rsbdali.errors import RecipeError
from rsbdali.plan.autoaugment import TABLES, AutoAugmentPolicy
from rsbdali.plan.draws import Stream, draw_autoaugment, draw_interpolation, draw_randaugment
from rsbdali.plan.kinds import BLURS, transform_set
from rsbdali.plan.randaugment import Op, RandAugmentPolicy
from rsbdali.plan.trivialaugment import FILL, TrivialAugmentPolicy, draw_trivialaugment
from rsbdali.recipe import Recipe

Policy = RandAugmentPolicy | AutoAugmentPolicy | TrivialAugmentPolicy
JITTER_OPS = (Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.HUE)
BLUR_SIGMA = 0.1, 2.0  # torchvision's GaussianBlur: uniform, in pixels
BLUR_LEAST_SIDE = 12  # of an image that its 23 taps can be mirrored in

REFUSED = {
    "augmix": "AugMix blends three chains of ops an image, which no executor here does; use RandAugment (rand-…)",
    "3aw": "timm knows the weighted 3-Augment as RandAugment's t3aw, for example rand-m9-n1-p1-inc1-t3aw",
}


class Layers(NamedTuple):
    """Ops (int8), arguments (float64) and filters of warps (uint8) of N images: shapes (N, L)."""

    op_NL: np.ndarray
    arg_NL: np.ndarray
    interp_NL: np.ndarray


def parse_policy(aa: str | None) -> Policy | None:
    """Read an `aa` string: RandAugment, AutoAugment and 3-Augment in timm's words, or `trivial`; None or none for none.

    Raises:
        RecipeError: an unknown policy, one that is not offered, or a value out of range.
    """
    name = (aa or "none").partition("-")[0]
    if aa is None or name in ("rand", "none"):
        return RandAugmentPolicy.parse(aa)
    if name in TABLES:
        return AutoAugmentPolicy.parse(aa)
    if aa == "trivial":
        return TrivialAugmentPolicy()
    if name in REFUSED:
        raise RecipeError(f"aa={shown(aa)}: {REFUSED[name]}")
    raise RecipeError(f"aa={shown(aa)}: expected rand-…, {', '.join(TABLES)}, trivial or none")


def jitter_strengths(recipe: Recipe) -> tuple[float, float, float, float]:
    """Strengths of brightness, contrast, saturation and hue as they act: none beside a policy other than 3-Augment."""
    given = recipe.color_jitter
    if given is None or (recipe.aa not in (None, "", "none") and "3a" not in recipe.aa):
        return 0.0, 0.0, 0.0, 0.0
    if isinstance(given, float):
        return given, given, given, 0.0
    brightness, contrast, saturation, *hue = given
    return brightness, contrast, saturation, hue[0] if hue else 0.0


def fill_color(recipe: Recipe) -> tuple[int, int, int]:
    """Levels of R, G and B outside the image: the mean in 8 bits (timm), black for TrivialAugment (torchvision)."""
    if recipe.aa == "trivial":
        return FILL
    red, green, blue = (min(255, round(255 * share)) for share in recipe.mean)
    return red, green, blue


def cpu_only(recipe: Recipe) -> str | None:
    """The first setting of a recipe of which there is no kernel, so that the CPU has to make its batches; else None."""
    policy = parse_policy(recipe.aa)
    blurs = isinstance(policy, AutoAugmentPolicy) and policy.blurs
    blurs |= isinstance(policy, RandAugmentPolicy) and not BLURS.isdisjoint(transform_set(policy)[0])
    if blurs:
        return f"aa={recipe.aa} (its Gaussian blur)"
    if jitter_strengths(recipe)[3]:
        return f"color_jitter={list(recipe.color_jitter)} (its hue)"  # type: ignore[arg-type]  # hue makes it a tuple
    if recipe.gaussian_blur_prob:
        return f"gaussian_blur_prob={recipe.gaussian_blur_prob:g}"
    return f"train_crop_mode={recipe.train_crop_mode}" if recipe.train_crop_mode != "rrc" else None


def num_layers(recipe: Recipe) -> int:
    """L of a recipe, at least 1."""
    return draw_layers(recipe, parse_policy(recipe.aa), 0, lambda _: np.random.default_rng(0)).op_NL.shape[1]


def draw_layers(
    recipe: Recipe, policy: Policy | None, rows: int, rng: Callable[[Stream], np.random.Generator]
) -> Layers:
    """Draw the layers of `rows` images; one layer of `Op.NONE` where a recipe has none.

    Args:
        recipe: the settings.
        policy: `parse_policy` of its `aa`.
        rows: N.
        rng: a generator for each stream.

    Raises:
        RecipeError: the images are too small for the blur.
    """
    parts: list[Layers] = []
    if recipe.vflip:
        parts.append(_some(Op.FLIP_Y, rng(Stream.VFLIP), rows, recipe.vflip))
    if policy is not None:
        parts.append(_draw_policy(policy, rows, rng(Stream.RANDAUGMENT), recipe.train_interpolation))
    if any(jitter_strengths(recipe)):
        parts.append(_draw_jitter(recipe, rows, rng(Stream.COLOR_JITTER)))
    if recipe.grayscale_prob:
        parts.append(_some(Op.COLOR, rng(Stream.GRAYSCALE), rows, recipe.grayscale_prob))
    if recipe.gaussian_blur_prob:
        parts.append(_draw_blur(recipe, rows, rng(Stream.GAUSSIAN_BLUR)))
    if not parts:
        return _some(Op.NONE, rng(Stream.VFLIP), rows, 0.0)
    return Layers(*(np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)))


def _draw_policy(policy: Policy, rows: int, rng: np.random.Generator, interpolation: str) -> Layers:
    if isinstance(policy, RandAugmentPolicy):
        return Layers(*draw_randaugment(rng, rows, policy, interpolation))
    if isinstance(policy, AutoAugmentPolicy):
        return Layers(*draw_autoaugment(rng, rows, policy, interpolation))
    op_N1, arg_N1 = draw_trivialaugment(rng, rows)
    return Layers(op_N1, arg_N1, draw_interpolation(rng, op_N1.shape, interpolation))


def _some(op: Op, rng: np.random.Generator, rows: int, prob: float) -> Layers:
    """One layer: the op with argument 0 on a share of the images."""
    applied_N1 = rng.random((rows, 1)) < prob
    return Layers(np.where(applied_N1, op, Op.NONE).astype(np.int8), np.zeros((rows, 1)), np.zeros((rows, 1), np.uint8))


def _draw_jitter(recipe: Recipe, rows: int, rng: np.random.Generator) -> Layers:
    """Torchvision's `ColorJitter`: each component's factor uniform in [max(0, 1 − s), 1 + s], hue's in [−s, s]."""
    strengths = np.array(jitter_strengths(recipe))
    low = np.where(np.array(JITTER_OPS) == Op.HUE, -strengths, np.maximum(0.0, 1.0 - strengths))
    high = np.where(np.array(JITTER_OPS) == Op.HUE, strengths, 1.0 + strengths)
    arg_N4 = low + (high - low) * rng.random((rows, 4))
    order_N4 = rng.random((rows, 4)).argsort(axis=1)
    prob = 1.0 if recipe.color_jitter_prob is None else recipe.color_jitter_prob
    applied_N1 = rng.random((rows, 1)) <= prob
    op_N4 = np.where(applied_N1 & (strengths > 0), np.array(JITTER_OPS), Op.NONE).astype(np.int8)
    # a component that is off costs no layer: columns that hold an op, in their order, filled up to as many as are on
    shuffled_N4 = np.take_along_axis(op_N4, order_N4, axis=1)
    kept_NL = np.argsort(shuffled_N4 == Op.NONE, axis=1, kind="stable")[:, : int((strengths > 0).sum())]
    chosen_NL = np.take_along_axis(order_N4, kept_NL, axis=1)
    op_NL, arg_NL = np.take_along_axis(op_N4, chosen_NL, axis=1), np.take_along_axis(arg_N4, chosen_NL, axis=1)
    return Layers(op_NL, arg_NL, np.zeros(op_NL.shape, np.uint8))


def _draw_blur(recipe: Recipe, rows: int, rng: np.random.Generator) -> Layers:
    """Torchvision's `GaussianBlur(kernel_size=23)`: sigma uniform in 0.1 to 2 pixels."""
    if min(recipe.train_size) < BLUR_LEAST_SIDE:
        raise RecipeError(f"gaussian_blur_prob needs an img_size of at least {BLUR_LEAST_SIDE} pixels")
    blurred = _some(Op.GAUSSIAN_FILTER, rng, rows, recipe.gaussian_blur_prob)
    low, high = BLUR_SIGMA
    return blurred._replace(arg_NL=low + (high - low) * rng.random((rows, 1)))
