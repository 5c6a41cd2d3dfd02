"""Which settings of the loader a run takes: given ones, those it was begun with, or those tuned for this machine."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rsbdali.bounded import NotPlain, parse_json
from rsbdali.distributed import collectives
from rsbdali.distributed.devices import default_threads
from rsbdali.distributed.world import World
from rsbdali.errors import RsbdaliError
from rsbdali.loader import tuned
from rsbdali.loader.tuned import LoaderSettings
from rsbdali.recipe import Recipe
from rsbdali.runs.folder import ARGS, read_args

FACT = "tuned"  # in the head of args.yaml
log = logging.getLogger(__name__)


def settings_on_all_ranks(recipe: Recipe, device: torch.device, world: World, **how: Any) -> LoaderSettings | None:
    """`settings_of_run` on rank 0, whose choice all take: what makes the pixels must be the same everywhere."""

    def choose() -> LoaderSettings | None:
        return settings_of_run(recipe, device, **how) if world.is_rank_zero else None

    return collectives.broadcast_object(collectives.on_all_ranks(choose, world), world)


def tuned_threads(settings: LoaderSettings | None, world: World, share: int | None) -> int | None:
    """Threads of this rank; `share` where nothing is tuned.

    One process with all cores was tuned; where several share them, none goes beyond its share.
    """
    if settings is None:
        return share
    return settings.threads if world.size == 1 else min(settings.threads, share or default_threads(world))


def settings_of_run(
    recipe: Recipe, device: torch.device, *, use_tuned: bool, resume: str | None, folder: Path
) -> LoaderSettings | None:
    """What `rsbdali tune` found, where this run asked for it or the one that it resumes did; None: nothing tuned.

    A run that is resumed keeps what it was begun with. With `use_tuned` it takes what is tuned for this machine, but
    for what makes its pixels.

    Args:
        recipe: of the run.
        device: of the run.
        use_tuned: `--tuned`.
        resume: 'auto', a checkpoint, or None.
        folder: the run's.

    Raises:
        RsbdaliError: nothing is tuned for this machine.
    """
    is_begun, before = (False, None)
    if resume is not None:
        is_begun, before = _recorded(folder if resume == "auto" else Path(resume).parent)
    chosen, whose = before, "for the run that goes on"
    if use_tuned:
        chosen, whose = tuned.find(recipe, device), "for this machine"
        if is_begun:
            chosen = replace(chosen, executor=before.executor if before else "auto")
    if chosen is not None:
        log.info("loader tuned %s: %s", whose, chosen)
    return chosen


def fact(settings: LoaderSettings | None) -> dict[str, Any]:
    """For the head of args.yaml; nothing where nothing is tuned."""
    return {} if settings is None else {FACT: json.dumps(settings.to_dict())}


def _recorded(folder: Path) -> tuple[bool, LoaderSettings | None]:
    """Whether a folder holds a run, and what its loader was begun with, where that was tuned."""
    if not (folder / ARGS).exists():
        return False, None
    try:
        facts = read_args(folder)[0]
        return True, LoaderSettings.of(parse_json(facts[FACT])) if FACT in facts else None
    except (NotPlain, RsbdaliError) as error:
        log.warning("%s: whether its loader was tuned is not known (%s)", folder, error)
        return True, None
