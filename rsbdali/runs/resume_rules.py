"""Settings that differ from the checkpoint's: when each acts, and which a resumed run refuses.

Every key of the recipe declares its rule (`rsbdali.recipe.OnResume`):

    AT_ONCE      model, loaders, loss and optimizer are built from the new recipe, and batches are drawn again from
                 (seed, epoch, step): the next step uses the new value
    NEXT_EPOCH   the key decides which images an epoch's step gets. Between epochs the new value acts; in the middle of
                 one it would repeat some images and skip others, so it is refused
    REFUSED      the value is part of what the checkpoint holds, or acted only when the run began
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm

from rsbdali.errors import CheckpointError
from rsbdali.recipe import AT_ONCE, NEXT_EPOCH, REFUSED, OnResume, Recipe

ALSO = {"mix_groups": " and use no more processes than that"}


@dataclass(frozen=True)
class Change:
    """A key whose value is not the checkpoint's.

    Attributes:
        key: of the recipe.
        old: its value in the checkpoint, as `Recipe.to_dict` gives it.
        new: its value in this run.
        rule: what becomes of it.
    """

    key: str
    old: Any
    new: Any
    rule: OnResume

    def __str__(self) -> str:
        return f"{self.key} {self.old} → {self.new}"


def changes(before: Mapping[str, Any], recipe: Recipe, **effective: Any) -> list[Change]:
    """What differs between a checkpoint's settings and this run's.

    Args:
        before: the checkpoint's recipe as plain values. A key that it lacks had its default: that is how a new key
            leaves earlier runs as they were.
        recipe: of this run.
        **effective: values of this run that count in place of the recipe's.
    """
    old = {**Recipe().to_dict(), **before}
    new = {**recipe.to_dict(), **effective}
    return [Change(key, old[key], new[key], _rule(key, recipe)) for key in new if old[key] != new[key]]


def refuse(changed: list[Change], epoch: int, step: int, path: Path) -> None:
    """Refuse what cannot change at this position.

    Args:
        changed: from `changes`.
        epoch: of the checkpoint, from 0.
        step: steps of it that are done.
        path: of the checkpoint.

    Raises:
        CheckpointError: names the keys, their values and the way out.
    """
    never = [change for change in changed if change.rule is REFUSED]
    if never:
        raise CheckpointError(
            f"{path}: a run cannot be resumed with {_list(never)}: {_set_back(never)}, or start a new run "
            "(--initial-checkpoint takes the weights)"
        )
    later = [change for change in changed if change.rule is NEXT_EPOCH]
    if later and step:
        raise CheckpointError(
            f"{path} is in the middle of epoch {epoch + 1}, and {_list(later)} can only change between epochs: "
            f"{_set_back(later)}, or resume from a checkpoint-*.pth.tar, which is the end of an epoch"
        )


def describe(changed: list[Change], epoch: int) -> str:
    """One line on what changed and when it acts; `epoch` (from 0) is the one that goes on or begins."""
    when = {AT_ONCE: "acts at once", NEXT_EPOCH: f"acts from epoch {epoch + 1} on"}
    return ", ".join(f"{change} ({when[change.rule]})" for change in changed)


def _rule(key: str, recipe: Recipe) -> OnResume:
    if key == "img_size" and has_fixed_size(recipe.model):  # the weights hold one position embedding for each patch
        return REFUSED
    fields = {f.name: f for f in dataclasses.fields(Recipe)}
    rule: OnResume = fields[key].metadata["on_resume"]
    return rule


def _list(changed: list[Change]) -> str:
    return ", ".join(map(str, changed))


def _set_back(changed: list[Change]) -> str:
    return "set " + ", ".join(f"{change.key}={change.old}{ALSO.get(change.key, '')}" for change in changed)


def has_fixed_size(name: str) -> bool:
    """Whether a timm model is built for one image size, as those with position embeddings are."""
    config = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    return config is not None and bool(config.fixed_input_size)
