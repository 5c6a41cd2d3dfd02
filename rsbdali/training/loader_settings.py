"""Which settings of the loader a run takes: those it was begun with, or those tuned for this machine."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rsbdali.bounded import NotPlain
from rsbdali.distributed import collectives
from rsbdali.distributed.devices import default_threads
from rsbdali.distributed.world import World
from rsbdali.errors import CheckpointError
from rsbdali.loader import tuned
from rsbdali.loader.tuned import LoaderSettings
from rsbdali.recipe import Recipe

log = logging.getLogger(__name__)


def tuned_settings(
    recipe: Recipe,
    device: torch.device,
    world: World,
    *,
    use_tuned: bool,
    recorded: Mapping[str, Any] | None,
    path: Path | None = None,
) -> LoaderSettings | None:
    """What the checkpoint records that a run goes on from, else what is tuned for this machine; None: nothing tuned.

    Rank 0 chooses for all: what makes the pixels must be the same everywhere.

    Args:
        recipe: of the run.
        device: of the run.
        world: the processes that call this together.
        use_tuned: `--tuned`.
        recorded: the settings in the checkpoint; empty where the run was not tuned, None where none is resumed.
        path: of the checkpoint.

    Raises:
        RsbdaliError: nothing is tuned for this machine; what the checkpoint records is damaged.
    """

    def choose() -> LoaderSettings | None:
        if not world.is_rank_zero:
            return None
        if recorded:
            return _said(_parsed(recorded, path), "for the run that goes on")
        return _said(tuned.find(recipe, device), "for this machine") if use_tuned else None

    return collectives.broadcast_object(collectives.on_all_ranks(choose, world), world)


def _said(settings: LoaderSettings, whose: str) -> LoaderSettings:
    log.info("loader tuned %s: %s", whose, settings)
    return settings


def _parsed(recorded: Mapping[str, Any], path: Path | None) -> LoaderSettings:
    try:
        return LoaderSettings.of(dict(recorded))
    except NotPlain as error:
        raise CheckpointError(f"{path} is damaged: its rsbdali.tuned {error}") from error


def tuned_threads(settings: LoaderSettings | None, world: World, share: int | None) -> int | None:
    """Threads of this rank; `share` where nothing is tuned.

    One process with all cores was tuned; where several share them, none goes beyond its share.
    """
    if settings is None:
        return share
    return settings.threads if world.size == 1 else min(settings.threads, share or default_threads(world))
