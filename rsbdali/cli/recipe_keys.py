"""Every key of a recipe as a long option: `--lr 1e-3` is `--set lr=1e-3`. `--help-recipe` shows them."""

import functools
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import click

from rsbdali.cli.completion import complete_models
from rsbdali.cli.help import KEYS
from rsbdali.errors import RecipeError
from rsbdali.recipe import Recipe

UNFOLDED = "rsbdali.help_recipe"  # in a context's meta: the keys are to be shown
DEFAULT = "a3"
PREFIX = "key_"  # of a key's parameter, so that it is none of the command's own
HINTS = {name: hint for name, hint in typing.get_type_hints(Recipe).items() if name != "reported"}
HELP = {
    "name": "Name, of the run's folder.",
    "model": "Any model of timm.",
    "drop": "Dropout.",
    "drop_path": "Stochastic depth.",
    "zero_init_last": "Let the last BatchNorm of a residual block start at 0.",
    "img_size": "Training size in pixels; H,W where they differ.",
    "test_img_size": "Evaluation size in pixels.",
    "crop_pct": "Share of the resized test image that is cut out.",
    "mean": "Mean of pixels / 255.",
    "std": "Standard deviation of pixels / 255.",
    "epochs": "Epochs.",
    "global_batch_size": "Rows of an optimizer step, over all GPUs.",
    "micro_batch_size": "Most rows of one forward pass on a GPU (none: a mix group).",
    "opt": "Optimizer, of timm's.",
    "lr": "Peak learning rate; auto: as the recipe's, scaled to the batch.",
    "min_lr": "Learning rate at the end.",
    "weight_decay": "Weight decay, not of biases and norms.",
    "warmup_epochs": "Epochs of linear warmup, of all epochs.",
    "warmup_lr": "Learning rate that warmup starts from.",
    "clip_grad": "Largest norm of the gradient (LAMB clips on its own).",
    "smoothing": "Label smoothing.",
    "bce_loss": "Binary cross entropy instead of cross entropy.",
    "bce_target_thresh": "Targets above it become 1.",
    "scale": "Bounds of a crop's share of the area.",
    "ratio": "Bounds of a crop's width / height.",
    "hflip": "Probability of a horizontal flip.",
    "train_interpolation": "Filter in training.",
    "interpolation": "Filter in evaluation.",
    "aa": "RandAugment in timm's words.",
    "aug_repeats": "Augmentations of each image in an epoch.",
    "aug_repeats_mode": "timm's order, or decoded once and augmented k times.",
    "reprob": "Probability of random erasing.",
    "remode": "What erased boxes are filled with.",
    "recount": "Most erased boxes of an image.",
    "color_jitter": "Strength of color jitter, or three or four of them.",
    "color_jitter_prob": "Probability of color jitter (none: always).",
    "grayscale_prob": "Probability of gray.",
    "gaussian_blur_prob": "Probability of blur.",
    "vflip": "Probability of a flip upside down.",
    "train_crop_mode": "Crops in training: at random, or with the aspect ratio kept.",
    "crop_mode": "Crop in evaluation.",
    "mixup": "Alpha of mixup (0: off).",
    "cutmix": "Alpha of CutMix (0: off).",
    "mixup_prob": "Probability of mixing at all.",
    "mixup_switch_prob": "Probability of CutMix where both are on.",
    "mixup_mode": "One λ for each group, pair or row.",
    "mixup_off_epoch": "Epoch at which mixing ends (0: never).",
    "mix_groups": "λs of an optimizer step: rows that share one are a group.",
    "seed": "Seed of weights, order, augmentation and drop path.",
    "amp_dtype": "Type of autocast; auto: bfloat16 from Ampere on, float16 before, float32 on a CPU.",
    "dist_bn": "What ranks do with BatchNorm's running statistics.",
    "model_ema": "Average the weights, and evaluate those.",
    "model_ema_decay": "Decay of the average.",
    "eval_every": "Epochs between evaluations.",
    "checkpoint_hist": "Checkpoints of the best epochs that stay.",
    "log_interval": "Steps between lines in the log.",
}


class RecipeKey(click.Option):
    """A recipe key as an option; its value is read as `--set` reads it."""

    group = KEYS

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Nothing, unless the keys are asked for."""
        recipe = ctx.meta.get(UNFOLDED)
        if recipe is None:
            return None
        spec, text = super().get_help_record(ctx) or ("", "")
        value = recipe.to_dict()[str(self.name).removeprefix(PREFIX)]
        shown = "none" if value is None else str(value).lower() if isinstance(value, bool) else value
        return spec, f"{text}  [{recipe.name}: {shown}]"


def key_options(*, without: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add `--set`, a long option for each recipe key, and `--help-recipe`; the function gets them all as `overrides`.

    Args:
        without: keys whose option means something else in this command.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, overrides: tuple[str, ...], **rest: Any) -> Any:
            given = {name: rest.pop(PREFIX + name) for name in HINTS if PREFIX + name in rest}
            return function(*args, overrides=merged(overrides, given), **rest)

        decorated: Callable[..., Any] = call
        for name in reversed([name for name in HINTS if name not in without]):
            decorated = _option(name)(decorated)
        return SET(HELP_RECIPE(decorated))

    return decorate


def _option(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    hint = HINTS[name]
    switch: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if hint is bool else {}
    if name == "model":
        switch["shell_complete"] = complete_models
    flag = f"--{name.replace('_', '-')}"
    return click.option(flag, PREFIX + name, cls=RecipeKey, metavar=_metavar(hint), help=HELP.get(name, ""), **switch)


def _metavar(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return "|".join(dict.fromkeys(_metavar(each) for each in typing.get_args(hint)))
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return ",".join(map(_metavar, typing.get_args(hint)))
    return {int: "N", float: "X", bool: "true|false", types.NoneType: "none"}.get(hint, "TEXT")


def merged(overrides: tuple[str, ...], keys: Mapping[str, str | None]) -> tuple[str, ...]:
    """The pairs of `--set` and the keys given as options, as pairs.

    Raises:
        RecipeError: a key is given in both ways, with values that differ.
    """
    pairs = dict(pair.split("=", 1) for pair in overrides if "=" in pair)
    given = {name: _as_list(value, HINTS[name]) for name, value in keys.items() if value is not None}
    for name, value in given.items():
        if name in pairs and _value(pairs[name]) != _value(value):
            flag = f"--{name.replace('_', '-')} {value}"
            raise RecipeError(f"{flag} and --set {name}={pairs[name]} differ: give one of them")
    return (*overrides, *(f"{name}={value}" for name, value in given.items()))


def _as_list(value: str, hint: Any) -> str:
    """`0.08,1` as the list that YAML knows, where a key takes several numbers."""
    takes = any(typing.get_origin(each) is tuple for each in (hint, *typing.get_args(hint)))
    return f"[{value}]" if takes and "," in value and not value.startswith("[") else value


def _value(text: str) -> object:
    """A value to compare: `1e-3` is `0.001`."""
    try:
        return float(text)
    except ValueError:
        return text.strip().replace(" ", "")


def _show_keys(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    # the recipe's name is parsed eagerly, so it is known by now
    if wanted and not ctx.resilient_parsing:
        ctx.meta[UNFOLDED] = Recipe.load(ctx.params.get("recipe") or ctx.params.get("recipe_name") or DEFAULT)
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


def _complete_set(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    key, sign, value = incomplete.partition("=")
    if sign and key == "model":
        return [f"model={name.value}" for name in complete_models(_ctx, _param, value)]
    return [f"{name}=" for name in HINTS if name.startswith(key) and not sign]


SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=_complete_set,
    help="Set a recipe key. As often as you like.",
)
HELP_RECIPE = click.option(
    "--help-recipe",
    is_flag=True,
    expose_value=False,
    callback=_show_keys,
    help=f"Show the recipe's {len(HINTS)} keys: each is an option too, as in --epochs 3 --lr 1e-3 --model resnet18.",
)
