"""A recipe as the arguments of timm's train.py, for `rsbdali recipe show a3 --as timm`."""

from typing import Any

import yaml

from rsbdali.errors import RecipeError
from rsbdali.recipe import Recipe

# keys that mean the same there and here
SAME = (
    "model", "drop", "drop_path", "crop_pct", "mean", "std", "epochs", "opt", "lr", "min_lr", "weight_decay",
    "warmup_epochs", "warmup_lr", "clip_grad", "smoothing", "bce_loss", "bce_target_thresh", "scale", "ratio", "hflip",
    "train_interpolation", "interpolation", "aa", "aug_repeats", "reprob", "mixup", "cutmix", "mixup_prob",
    "mixup_switch_prob", "mixup_mode", "mixup_off_epoch", "seed", "model_ema", "model_ema_decay",
    "checkpoint_hist", "log_interval",
)  # fmt: skip


def timm_arguments(recipe: Recipe, world_size: int) -> dict[str, Any]:
    """The recipe under timm's argument names (train.py of timm 1.0), `batch_size` being per GPU there.

    Raises:
        RecipeError: the world size does not divide the global batch.
    """
    if recipe.global_batch_size % world_size:
        raise RecipeError(f"global_batch_size={recipe.global_batch_size} is no multiple of --world-size {world_size}")
    plain = recipe.to_dict()
    arguments = {key: plain[key] for key in SAME}
    arguments["input_size"] = [3, *recipe.train_size]
    arguments["batch_size"] = recipe.global_batch_size // world_size
    arguments["sched"] = "cosine"
    arguments["cooldown_epochs"] = 0
    arguments["color_jitter"] = None  # timm adds jitter where aa is none
    arguments["dist_bn"] = "" if recipe.dist_bn == "none" else recipe.dist_bn
    arguments["channels_last"] = True
    arguments["amp"] = recipe.amp_dtype != "float32"
    if recipe.amp_dtype in ("float16", "bfloat16"):
        arguments["amp_dtype"] = recipe.amp_dtype
    return arguments


def timm_yaml(recipe: Recipe, world_size: int) -> str:
    """A file for `train.py -c`, with comments that say where timm cannot follow."""
    height, width = recipe.test_size
    notes = [f"# {recipe.name} for timm's train.py on {world_size} GPU(s): torchrun … train.py -c THIS --data-dir DATA"]
    if recipe.test_size != recipe.train_size:
        notes.append(
            f"# timm has no test-size argument: this would evaluate at {recipe.train_size[0]} px, not at {height} x "
            f"{width}; run its validate.py with --img-size {height} afterwards"
        )
    if world_size != recipe.mix_groups:
        notes.append(
            f"# timm draws one lambda per GPU: {world_size} an optimiser step here, where the recipe has "
            f"{recipe.mix_groups}"
        )
    if recipe.aug_repeats > 1 and world_size == 1:
        notes.append("# timm refuses aug_repeats without distributed training")
    body = yaml.safe_dump(timm_arguments(recipe, world_size), sort_keys=False, default_flow_style=None)
    return "\n".join([*notes, body])
