"""One session of a run: what its parts (loaders, files, trainer) are made from."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rsbdali.data.index import ImageIndex
from rsbdali.distributed.world import World
from rsbdali.loader import EvalLoader, TrainLoader
from rsbdali.loader.eval import eval_batch_size
from rsbdali.loader.tuned import DEFAULT_PREFETCH, LoaderSettings
from rsbdali.runs.find_checkpoint import Saved
from rsbdali.runs.folder import add_bad_image
from rsbdali.training.options import TrainOptions
from rsbdali.training.precision import amp_dtype

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Session:
    """From a start to an end or a signal.

    Attributes:
        options: with the decode mode that was chosen.
        world: the processes.
        device: of this rank.
        folder: of the run.
        saved: the checkpoint to go on from.
        tuned: settings of the loader for this machine; None: the defaults.
        threads: CPU threads of this rank's share of the cores; None: not shared out.
    """

    options: TrainOptions
    world: World
    device: torch.device
    folder: Path
    saved: Saved | None = None
    tuned: LoaderSettings | None = None
    threads: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images and of autocast."""
        return amp_dtype(self.options.recipe.amp_dtype, self.device)

    def train_loader(self, index: ImageIndex) -> TrainLoader:
        """The training loader of this rank, started."""
        options, tuned = self.options, self.tuned
        threads = self.threads if tuned is None else tuned.threads_of(self.world, self.threads)
        return TrainLoader(
            index,
            options.recipe,
            **self._of_both(),
            num_threads=options.workers or threads,
            prefetch=DEFAULT_PREFETCH if tuned is None else tuned.prefetch,
            chunk=None if tuned is None else tuned.chunk,
            on_bad=partial(self.note_bad, "does not decode, another takes its place"),
            max_bad_images=options.max_bad_images,
        )

    def eval_loader(self, index: ImageIndex) -> EvalLoader:
        """The evaluation loader of this rank."""
        options = self.options
        return EvalLoader(
            index,
            options.recipe,
            **self._of_both(),
            num_threads=options.workers or self.threads,
            batch_size=options.eval_batch_size or eval_batch_size(self.device),
            on_bad=partial(self.note_bad, "does not decode, not evaluated"),
        )

    def _of_both(self) -> dict[str, Any]:
        """Arguments that both loaders take alike."""
        return {
            "rank": self.world.rank,
            "world_size": self.world.size,
            "device": self.device,
            "decode": self.options.decode,
            "hw_decoder_load": self.options.hw_decoder_load,
            "dtype": self.dtype,
        }

    def note_bad(self, fate: str, path: str, reason: str) -> None:
        """Log an image that cannot be used, and add it to the run's list.

        Args:
            fate: what becomes of it.
            path: in its source.
            reason: why.
        """
        log.warning("%s: %s (%s)", fate, path, reason)
        add_bad_image(self.folder, path, reason)
