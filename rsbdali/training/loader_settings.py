"""Which settings of the loader a run takes: those it was begun with, or those tuned for this machine."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rsbdali.bounded import NotPlain
from rsbdali.data.index import ImageIndex
from rsbdali.distributed import collectives
from rsbdali.distributed.devices import default_threads
from rsbdali.distributed.world import World
from rsbdali.errors import CheckpointError
from rsbdali.loader import tuned
from rsbdali.loader.decode_mode import choose_decode, resumed_decode
from rsbdali.loader.tuned import LoaderSettings
from rsbdali.runs.find_checkpoint import Saved
from rsbdali.training.options import TrainOptions

log = logging.getLogger(__name__)


def tuned_settings(
    options: TrainOptions, saved: Saved | None, world: World, device: torch.device
) -> LoaderSettings | None:
    """What the checkpoint records that a run goes on from, else what is tuned for this machine; None: nothing tuned.

    Rank 0 chooses for all: what makes the pixels must be the same everywhere.

    Args:
        options: of the run; `tuned` asks for this machine's settings.
        saved: the checkpoint that is resumed; its record is empty where the run was not tuned.
        world: the processes that call this together.
        device: of the run.

    Raises:
        RsbdaliError: nothing is tuned for this machine; what the checkpoint records is damaged.
    """

    def choose() -> LoaderSettings | None:
        if not world.is_rank_zero:
            return None
        record = None if saved is None else saved.record
        if saved is not None and record is not None and record.tuned:
            return _said(_parsed(record.tuned, saved.path), "for the run that goes on")
        return _said(tuned.find(options.recipe, device), "for this machine") if options.tuned else None

    return collectives.broadcast_object(collectives.on_all_ranks(choose, world), world)


def with_tuned(options: TrainOptions, settings: LoaderSettings | None, saved: Saved | None) -> TrainOptions:
    """The options with decode mode and JPEG engine's share as tuned, unless given or those of a resumed run."""
    if settings is None or (saved is not None and saved.record is not None):
        return options
    decode = settings.decode if options.decode == "auto" else options.decode
    return replace(options, decode=decode, hw_decoder_load=settings.load_for(decode, options.hw_decoder_load))


def with_decoding(
    options: TrainOptions,
    saved: Saved | None,
    index: ImageIndex,
    world: World,
    device: torch.device,
    threads: int | None,
) -> TrainOptions:
    """The options with the decode mode of this run: the one given, the checkpoint's, or the one chosen.

    Args:
        options: as given.
        saved: the checkpoint that is resumed.
        index: of the training images, to measure modes on.
        world: the processes that call this together.
        device: of this rank.
        threads: CPU threads of this rank's share; None: not shared out.

    Raises:
        RsbdaliError: the mode cannot work on the device, or is not the checkpoint's.
    """
    record = None if saved is None else saved.record
    before = ("", None) if record is None else (record.decode, record.hw_decoder_load)
    asked = collectives.on_all_ranks(lambda: resumed_decode(options.decode, before[0], device), world)
    workers = options.workers or threads or default_threads(world)
    decode = choose_decode(asked, index, options.recipe, device=device, num_threads=workers, world=world)
    load = before[1] if options.decode == "auto" and options.hw_decoder_load is None else options.hw_decoder_load
    return replace(options, decode=decode, hw_decoder_load=load)


def _said(settings: LoaderSettings, whose: str) -> LoaderSettings:
    log.info("loader tuned %s: %s", whose, settings)
    return settings


def _parsed(recorded: Mapping[str, Any], path: Path) -> LoaderSettings:
    try:
        return LoaderSettings.of(dict(recorded))
    except NotPlain as error:
        raise CheckpointError(f"{path} is damaged: its rsbdali.tuned {error}") from error
