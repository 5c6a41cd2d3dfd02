"""What an export starts from: a checkpoint of `rsbdali train` as a model to evaluate, and what is known of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import nn

from rsbdali.bounded import is_number
from rsbdali.errors import CheckpointError
from rsbdali.recipe import Recipe
from rsbdali.runs import checkpoint
from rsbdali.runs.checkpoint import load_weights
from rsbdali.runs.checkpoint_record import read_record
from rsbdali.runs.folder import read_args
from rsbdali.training.model import create_model


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained model.

    Attributes:
        model: on the CPU, float32, contiguous (NCHW), in evaluation mode.
        recipe: it was trained with.
        class_names: in the order of its outputs.
        averaged: whether the weights are the averaged ones (EMA).
        epochs: that are complete.
        top1: of these very weights, per cent; None where they were not evaluated.
        versions: of rsbdali, torch, timm and Python in training.
        facts: from the header of the run's `args.yaml` beside the checkpoint; empty where there is none.
    """

    model: nn.Module
    recipe: Recipe
    class_names: tuple[str, ...]
    averaged: bool
    epochs: int
    top1: float | None
    versions: Mapping[str, str]
    facts: Mapping[str, str]

    @property
    def label_descriptions(self) -> dict[str, str]:
        """Words for each class where the classes are ImageNet's synsets, else nothing."""
        if not all(name[:1] == "n" and name[1:].isdigit() and len(name) == 9 for name in self.class_names):
            return {}
        # timm's longest list; a class of one's own that only looks like a synset has no entry there
        known = ImageNetInfo("imagenet-22k")
        names = set(known.label_names())
        return {name: known.label_name_to_description(name) for name in self.class_names if name in names}


def read_source(path: Path, *, use_ema: bool | None = None) -> Source:
    """The model of a checkpoint.

    Args:
        path: of a checkpoint that `rsbdali train` wrote.
        use_ema: averaged weights or not; None: averaged where the checkpoint has some.

    Raises:
        CheckpointError: it cannot be read, was written by another program, or has no averaged weights.
    """
    content = checkpoint.read(path)
    record = read_record(content, path)
    if record is None:
        raise CheckpointError(f"{path} is not of rsbdali train: it does not say its recipe and classes")
    has_ema = isinstance(content.get("state_dict_ema"), Mapping)
    if use_ema and not has_ema:
        raise CheckpointError(f"{path} holds no averaged weights: leave --ema out (train with --set model_ema=true)")
    averaged = has_ema and use_ema is not False
    names = record.class_names
    recipe = Recipe.from_dict({**record.recipe, "model": content.get("arch")})
    return Source(
        model=_model(content, recipe, len(names), path, averaged=averaged),
        recipe=recipe,
        class_names=names,
        averaged=averaged,
        epochs=record.epoch,
        top1=_top1(content, is_evaluated=averaged == has_ema),
        versions=record.versions,
        facts=read_args(path.parent)[0],
    )


def _model(content: Mapping[str, Any], recipe: Recipe, num_classes: int, path: Path, *, averaged: bool) -> nn.Module:
    # what drops in training alone has no weights, and no place in an exported configuration
    model = create_model(recipe.with_overrides({"drop": 0.0, "drop_path": 0.0}), num_classes)
    load_weights(model, checkpoint.weights(content, use_ema=averaged), path)
    return model.float().to(memory_format=torch.contiguous_format).eval()


def _top1(content: Mapping[str, Any], *, is_evaluated: bool) -> float | None:
    """A checkpoint's metric is that of the averaged weights where there are some."""
    metric = content.get("metric")
    return float(metric) if is_evaluated and is_number(metric) else None
