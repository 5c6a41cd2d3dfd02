"""timm's arguments. Its loader's: which are a recipe's settings by other names, which must stay as they are, and why.

Nothing is ignored in silence: an argument is honored, or has no bearing on a batch (`NO_BEARING` says why), or is
refused by name as soon as timm would do something with it. Its train.py's: a recipe written as them, for
`rsbdali recipe show a3 --as timm`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import yaml

from rsbdali.errors import RecipeError, nearest
from rsbdali.plan.augmentation import parse_policy
from rsbdali.recipe import Recipe

SAME_IN_BOTH = {"mean": "mean", "std": "std"}
TRAINING = {
    **SAME_IN_BOTH,
    "input_size": "img_size",
    "interpolation": "train_interpolation",
    "scale": "scale",
    "ratio": "ratio",
    "train_crop_mode": "train_crop_mode",
    "hflip": "hflip",
    "vflip": "vflip",
    "auto_augment": "aa",
    "color_jitter": "color_jitter",
    "color_jitter_prob": "color_jitter_prob",
    "grayscale_prob": "grayscale_prob",
    "gaussian_blur_prob": "gaussian_blur_prob",
    "num_aug_repeats": "aug_repeats",
    "re_prob": "reprob",
    "re_mode": "remode",
    "re_count": "recount",
}
EVALUATION = {
    **SAME_IN_BOTH,
    "input_size": "test_img_size",
    "interpolation": "interpolation",
    "crop_pct": "crop_pct",
    "crop_mode": "crop_mode",
}
"""Argument → key of `Recipe`, in training and in evaluation; the others change nothing there, in timm neither."""

RECIPE_ARGUMENTS = frozenset({*TRAINING, *EVALUATION})

TIMM_DEFAULTS = {
    "train_interpolation": "bilinear",
    "interpolation": "bilinear",
    "crop_pct": 0.875,
    "remode": "const",
}
"""What timm's `create_loader` does where an argument is not given and `Recipe` does something else."""


@dataclass(frozen=True)
class Refused:
    """An argument that has to keep a value with which timm does nothing either.

    Attributes:
        neutral: the values that are fine.
        why: what is missing here, or what to use instead.
        training: it means something in training.
        evaluation: it means something in evaluation.
    """

    neutral: tuple[Any, ...]
    why: str
    training: bool = True
    evaluation: bool = True


REFUSED = {
    "no_aug": Refused((False,), "training images are always cropped at random", evaluation=False),
    "re_split": Refused((False,), "all rows of a batch are erased with the same probability", evaluation=False),
    "num_aug_splits": Refused(
        (0,),
        "splits (--aug-splits, for the JSD loss and AugMix) need each image several times in a batch, once clean, and "
        "no executor here makes such batches",
        evaluation=False,
    ),
    "crop_border_pixels": Refused((None, 0), "no border is trimmed", training=False),
    "tf_preprocessing": Refused((False,), "TensorFlow's preprocessing is not offered"),
    "fp16": Refused((False,), "give img_dtype=torch.float16"),
    "input_size_choices": Refused((None,), "all batches have one size", evaluation=False),
    "num_batches": Refused((None,), "an epoch is all images", evaluation=False),
    "worker_seeding": Refused(("all", "part"), "all draws come from seed=, workers draw nothing", evaluation=False),
}

NO_BEARING = {
    "pin_memory": "batches reach a GPU through pinned memory anyway",
    "persistent_workers": "threads live as long as the loader",
    "use_multi_epochs_loader": "threads live as long as the loader",
    "batch_size_choices": "only with input_size_choices, which is refused",
    "batch_choice_weights": "only with input_size_choices, which is refused",
    "batch_choice_seed": "only with input_size_choices, which is refused",
    "batch_choice_schedule": "only with input_size_choices, which is refused",
    "batch_schedule_epochs": "only with input_size_choices, which is refused",
    "batch_schedule_spread": "only with input_size_choices, which is refused",
    "batch_schedule_random_mix": "only with input_size_choices, which is refused",
}


class OtherTimmArguments(TypedDict, total=False):
    """The arguments of timm's loader in `REFUSED` and `NO_BEARING`, for type checkers; any value is looked at above."""

    no_aug: bool
    num_aug_splits: int
    crop_border_pixels: int | None
    tf_preprocessing: bool
    fp16: bool
    input_size_choices: Any
    num_batches: int | None
    worker_seeding: str
    pin_memory: bool
    persistent_workers: bool
    use_multi_epochs_loader: bool
    re_split: bool
    batch_size_choices: Any
    batch_choice_weights: Any
    batch_choice_seed: Any
    batch_choice_schedule: Any
    batch_schedule_epochs: Any
    batch_schedule_spread: Any
    batch_schedule_random_mix: Any


def refuse(others: Mapping[str, Any], *, is_training: bool, honored: Iterable[str]) -> None:
    """Go through the arguments that are not honored.

    Args:
        others: by name.
        is_training: of the loader.
        honored: names of the arguments that are, for the hint at a misspelled one.

    Raises:
        RecipeError: one of them is unknown, or would do something in timm.
    """
    # splits first: what comes with them says less of why
    for name, value in sorted(others.items(), key=lambda item: item[0] != "num_aug_splits"):
        if name in NO_BEARING:
            continue
        if name not in REFUSED:
            raise RecipeError(f"create_loader has no argument {name!r}{nearest(name, [*honored, *REFUSED])}")
        rule = REFUSED[name]
        counts = rule.training if is_training else rule.evaluation
        if counts and not _is_neutral(value, rule.neutral):
            raise RecipeError(f"{name}={value!r} cannot be honored: {rule.why}")


def with_arguments(recipe: Recipe, arguments: Mapping[str, Any], *, is_training: bool) -> Recipe:
    """The recipe with timm's arguments laid over it; None leaves a setting alone.

    Raises:
        RecipeError: a value is out of range or not offered; the message has the argument's name.
    """
    keys = TRAINING if is_training else EVALUATION
    given = {keys[name]: value for name, value in arguments.items() if name in keys and value is not None}

    def apply() -> Recipe:
        changed = recipe.with_overrides({key: _plain(key, value) for key, value in given.items()})
        parse_policy(changed.aa)
        return changed

    return _under_our_names(apply, {key: name for name, key in keys.items()})


def _under_our_names(make: Callable[[], Recipe], name_of: Mapping[str, str]) -> Recipe:
    """`make()`, its error about a recipe's key reported under the argument's name."""
    try:
        return make()
    except RecipeError as error:
        key, equals, rest = str(error).partition("=")
        raise RecipeError(f"{name_of.get(key, key)}{equals}{rest}") from error


# what timm takes the empty text for
EMPTY = {"train_crop_mode": "rrc", "crop_mode": "center", "remode": "const"}


def _plain(key: str, value: Any) -> Any:
    """Notations of timm as the recipe's: (3, H, W), 3.0 repeats, any sequence of numbers."""
    if key in ("img_size", "test_img_size"):
        return _size(value)
    if key == "aug_repeats" and isinstance(value, float) and value.is_integer():
        return int(value)
    if key == "aa" and value == "":
        return "none"
    if key in EMPTY and value == "":
        return EMPTY[key]
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def _size(value: Any) -> Any:
    if not isinstance(value, tuple | list):
        return value
    if len(value) == 3 and value[0] != 3:
        raise RecipeError(f"input_size={value!r}: images have 3 channels here")
    return [int(side) for side in value[-2:]]


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    return value in neutral


# keys that mean the same there and here
SAME = (
    "model",
    "drop",
    "crop_pct",
    "mean",
    "std",
    "epochs",
    "opt",
    "lr",
    "min_lr",
    "weight_decay",
    "warmup_epochs",
    "warmup_lr",
    "clip_grad",
    "smoothing",
    "bce_loss",
    "bce_target_thresh",
    "scale",
    "ratio",
    "train_crop_mode",
    "hflip",
    "vflip",
    "train_interpolation",
    "interpolation",
    "aa",
    "color_jitter",
    "color_jitter_prob",
    "grayscale_prob",
    "gaussian_blur_prob",
    "aug_repeats",
    "reprob",
    "remode",
    "recount",
    "mixup",
    "cutmix",
    "mixup_prob",
    "mixup_switch_prob",
    "mixup_mode",
    "mixup_off_epoch",
    "seed",
    "model_ema",
    "model_ema_decay",
    "checkpoint_hist",
    "log_interval",
)
# keys that train.py has in another form
TRANSLATED = {
    "zero_init_last": ("model_kwargs",),
    "drop_path": ("drop_path",),
    "img_size": ("input_size",),
    "global_batch_size": ("batch_size", "grad_accum_steps"),
    "micro_batch_size": ("batch_size", "grad_accum_steps"),
    "amp_dtype": ("amp", "amp_dtype"),
    "dist_bn": ("dist_bn",),
    "eval_every": ("val_interval",),
}
# keys without an argument there: a comment says what becomes of them, where it makes a difference
LACKING = ("name", "test_img_size", "crop_mode", "aug_repeats_mode", "mix_groups", "reported")


def timm_arguments(recipe: Recipe, world_size: int) -> dict[str, Any]:
    """The recipe under timm's argument names (train.py of timm 1.0), `batch_size` being rows of a forward pass there.

    Raises:
        RecipeError: the world size does not divide the global batch.
    """
    plain = recipe.to_dict()
    arguments = {key: plain[key] for key in SAME}
    if _takes_zero_init_last(recipe.model):
        arguments["model_kwargs"] = {"zero_init_last": recipe.zero_init_last}
    arguments["drop_path"] = recipe.drop_path or None  # 0 is an argument, which some models refuse
    arguments["input_size"] = [3, *recipe.train_size]
    arguments["batch_size"], arguments["grad_accum_steps"] = _batches(recipe, world_size)
    arguments["sched"] = "cosine"
    arguments["cooldown_epochs"] = 0
    if recipe.aa == "trivial":
        arguments["aa"] = None  # timm has none of that name
    arguments["dist_bn"] = "" if recipe.dist_bn == "none" else recipe.dist_bn
    arguments["channels_last"] = True
    arguments["amp"] = recipe.amp_dtype != "float32"
    if arguments["amp"]:  # its own default is float16
        arguments["amp_dtype"] = "float16" if recipe.amp_dtype == "float16" else "bfloat16"
    arguments["val_interval"] = recipe.eval_every
    return arguments


def _batches(recipe: Recipe, world_size: int) -> tuple[int, int]:
    """Rows of a forward pass on one GPU, and how many of them make a step: a whole mix group where it may be one."""
    rows, rest = divmod(recipe.global_batch_size, world_size)
    if rest:
        raise RecipeError(f"global_batch_size={recipe.global_batch_size} is no multiple of --world-size {world_size}")
    group = -(-recipe.global_batch_size // max(recipe.mix_groups, world_size))
    most = min(group, recipe.micro_batch_size or group)
    passes = next(passes for passes in range(-(-rows // most), rows + 1) if rows % passes == 0)
    return rows // passes, passes


def _takes_zero_init_last(name: str) -> bool:
    """Whether a model has the setting: others end with a TypeError there, and are made without it here."""
    import timm
    import torch

    try:
        with torch.device("meta"):
            timm.create_model(name, zero_init_last=True)
    except TypeError as error:
        return "zero_init_last" not in str(error)
    except (RuntimeError, NotImplementedError):  # no such model, or one that reads values while it is built
        return True
    return True


def timm_yaml(recipe: Recipe, world_size: int) -> str:
    """A file for `train.py -c`, with comments that say where timm cannot follow."""
    arguments = timm_arguments(recipe, world_size)
    head = f"{recipe.name} for timm's train.py on {world_size} GPU(s): torchrun … train.py -c THIS --data-dir DATA"
    notes = "".join(f"# {note}\n" for note in (head, *_notes(recipe, world_size, arguments)))
    return notes + yaml.safe_dump(arguments, sort_keys=False, default_flow_style=None)


def _notes(recipe: Recipe, world_size: int, arguments: Mapping[str, Any]) -> Iterator[str]:
    """What train.py does otherwise than the recipe says."""
    height, width = recipe.test_size
    if recipe.test_size != recipe.train_size:
        yield (
            f"timm has no test-size argument: this would evaluate at {recipe.train_size[0]} px, not at {height} x "
            f"{width}; run its validate.py with --img-size {height} afterwards"
        )
    if recipe.crop_mode != "center":
        yield f"timm has no crop-mode argument: this would evaluate with the model's own, not with {recipe.crop_mode}"
    if recipe.aa == "trivial":
        yield "timm has no TrivialAugment: aa is left out"
    lambdas = world_size * arguments["grad_accum_steps"]
    if lambdas != recipe.mix_groups:
        yield (
            f"timm draws one lambda for each forward pass of each GPU: {lambdas} an optimizer step here, where the "
            f"recipe has {recipe.mix_groups}"
        )
    if recipe.amp_dtype == "auto":
        yield "amp_dtype: auto is bfloat16 here, and on GPUs before Ampere (V100, T4) float16: change it for those"
    if recipe.aug_repeats > 1 and world_size == 1:
        yield "timm refuses aug_repeats without distributed training"
    if recipe.aug_repeats > 1 and recipe.aug_repeats_mode == "decode_once":
        yield "timm has no aug_repeats_mode: an image is decoded anew for each repeat, on another GPU each"
    if recipe.bce_loss and not (recipe.mixup or recipe.cutmix or recipe.smoothing):
        yield "timm ignores bce_loss without mixup, cutmix and smoothing: this would train with cross entropy"
    if not recipe.zero_init_last and "model_kwargs" not in arguments:
        yield f"{recipe.model} has no zero_init_last: left out"
