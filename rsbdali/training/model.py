"""Models by timm's names, made for a recipe: heads for the data's classes, drop rates, sizes, channels_last.

Drop path and dropout draw from torch's global generators. `reseed` sets these before each forward pass from where
the pass is in the run (seed, epoch, step, mix group, slice), so that what is dropped depends neither on the number of
processes nor on whether the run was resumed. It costs some 20 µs and no wait for the GPU.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from rsbdali.errors import RecipeError, nearest
from rsbdali.recipe import Recipe
from rsbdali.runs import checkpoint
from rsbdali.runs.checkpoint import load_weights
from rsbdali.runs.resume_rules import has_fixed_size

log = logging.getLogger(__name__)


def create_model(
    recipe: Recipe,
    num_classes: int,
    *,
    initial_checkpoint: str | Path | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """The recipe's model on the CPU, in channels_last, initialized from the recipe's seed.

    Args:
        recipe: `model`, `drop`, `drop_path`, `zero_init_last`, sizes and seed are read.
        num_classes: outputs of the head, from the data.
        initial_checkpoint: file to start from; a head for other classes is left as it was initialized.
        pretrained: start from timm's published weights (fetched once).

    Raises:
        RecipeError: timm has no such model, or it does not take one of the settings.
        CheckpointError: the file is damaged or of another model.
    """
    check_model(recipe.model)
    torch.manual_seed(recipe.seed)
    model = _instantiate(recipe, dict(num_classes=num_classes, pretrained=pretrained, **_settings(recipe)))
    if getattr(model, "num_classes", num_classes) != num_classes:
        raise RecipeError(f"model={recipe.model!r} keeps its {model.num_classes} classes: the data has {num_classes}")
    if initial_checkpoint is not None:
        start_from(model, initial_checkpoint)
    return model.to(memory_format=torch.channels_last)


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Keyword arguments for timm; None means the model's own default (models without the setting refuse it)."""
    settings: dict[str, Any] = {
        "drop_rate": recipe.drop,
        "drop_path_rate": recipe.drop_path or None,
        "zero_init_last": recipe.zero_init_last,
    }
    if has_fixed_size(recipe.model):
        settings["img_size"] = recipe.train_size
        # position embeddings are interpolated for any other size
        settings["dynamic_img_size"] = True if recipe.test_size != recipe.train_size else None
    return settings


def _instantiate(recipe: Recipe, settings: dict[str, Any]) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(recipe.model, **settings)
        return model
    except TypeError as error:
        if "zero_init_last" in str(error) and settings.pop("zero_init_last", None) is not None:
            return _instantiate(recipe, settings)  # not a residual network, or one that fixes it itself
        if "dynamic_img_size" in str(error):
            raise RecipeError(
                f"model={recipe.model!r} takes one image size only: set test_img_size to img_size "
                f"({list(recipe.train_size)})"
            ) from error
        raise RecipeError(f"model={recipe.model!r} does not take a setting: {error}") from error
    except (OSError, RuntimeError) as error:
        if not settings["pretrained"]:
            raise
        raise RecipeError(f"no published weights for {recipe.model!r}: {str(error).splitlines()[0]}") from error


def check_model(name: str) -> None:
    """Refuse a name that is no model's.

    Raises:
        RecipeError: timm has no such model, or knows no such tag of its weights.
    """
    if not timm.is_model(name):
        raise RecipeError(f"model={name!r}: timm has no such model{nearest(name, timm.list_models(), most=3)}")
    model, _, tag = name.partition(".")
    if tag and name not in (known := timm.models.get_arch_pretrained_cfgs(model)):
        raise RecipeError(f"model={name!r}: timm has no such weights of {model}{nearest(name, known, most=3)}")


def start_from(model: nn.Module, path: str | Path) -> None:
    """Load a file's weights for fine-tuning: all must fit but the head, which may be for other classes.

    Raises:
        CheckpointError: the file is damaged, or of another model.
    """
    state = checkpoint.weights(checkpoint.read(path))
    own = model.state_dict()
    other_head = [
        name for name in state if _is_head(model, name) and name in own and state[name].shape != own[name].shape
    ]
    for name in other_head:
        del state[name]
    load_weights(model, state, path, anew=other_head)
    if other_head:
        log.info("%s is for other classes: %s start anew", path, ", ".join(other_head))


def _is_head(model: nn.Module, name: str) -> bool:
    heads = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return name.startswith(tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads)))


def reseed(*position: int) -> None:
    """Seed torch's generators (CPU and GPU) for one forward pass: seed, epoch, step, mix group, slice."""
    torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0] >> 1))
