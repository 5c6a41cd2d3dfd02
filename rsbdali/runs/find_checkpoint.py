"""Which checkpoint a resume goes on from: the one that is named, or the newest valid one of a run's folder.

`find_saved` reads it; `resume_from` restores a run from it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsbdali.distributed import collectives
from rsbdali.distributed.world import World
from rsbdali.errors import CheckpointError, counted
from rsbdali.runs.checkpoint import read_verified
from rsbdali.runs.checkpoint_record import Record, read_record
from rsbdali.runs.folder import BEST, LAST
from rsbdali.runs.state import Identity, RunState

log = logging.getLogger(__name__)

ALONE = World()


@dataclass
class Saved:
    """A checkpoint that was read.

    Attributes:
        path: its file.
        content: what it holds; emptied by `resume_from`, since it is as large as the run's state.
    """

    path: Path
    content: Mapping[str, Any]

    @property
    def record(self) -> Record | None:
        """What rsbdali wrote; None in a file of another program."""
        return read_record(self.content, self.path)


def find_saved(resume: str | None, folder: Path, world: World = ALONE) -> Saved | None:
    """Read what `resume` names: a checkpoint, the newest valid one of a run's folder, or 'auto'.

    'auto' is the newest valid one of `folder`, if there is one.

    Raises:
        CheckpointError: the file is damaged; the folder that was named holds none; with 'auto', there are checkpoints
            and none is valid.
    """
    path = _chosen(resume, folder, world)
    return Saved(path, collectives.on_all_ranks(lambda: read_verified(path), world)) if path else None


def resume_from(saved: Saved | None, state: RunState, identity: Identity, world: World = ALONE) -> None:
    """Take a run up from a checkpoint, if there is one.

    Raises:
        CheckpointError: it is of another run.
    """
    if saved is None:
        return
    collectives.on_all_ranks(lambda: state.restore(saved.content, identity, saved.path), world)
    saved.content = {}
    if state.epoch < identity.recipe.epochs:
        log.info("Goes on from %s: epoch %d, %s of it done", saved.path, state.epoch + 1, counted(state.step, "step"))


def _chosen(resume: str | None, folder: Path, world: World) -> Path | None:
    if not resume:
        return None
    if resume == "auto":
        return _newest(folder, world)
    if not Path(resume).is_dir():
        return Path(resume)
    path = _newest(Path(resume), world)
    if path is None:
        raise CheckpointError(f"{resume} holds no checkpoint yet: begin the run again, without --resume")
    return path


def _newest(folder: Path, world: World) -> Path | None:
    """Rank 0's choice, on every rank: the others may see a shared folder as it was some moments ago."""
    path, wrong = collectives.broadcast_object(newest_valid(folder) if world.is_rank_zero else (None, []), world)
    if path is None and wrong:
        raise CheckpointError(f"no checkpoint in {folder} is valid, and a run does not begin over them: {wrong[0]}")
    for problem in wrong:
        log.warning("%s: passed over, %s is the newest valid one", problem, path)
    if path is None:
        log.info("Nothing to resume in %s: the run begins anew", folder)
    return path


def newest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from: `last.pth.tar`, and where that is damaged the one that is furthest in the run.

    Returns:
        The file, None where no checkpoint is valid, and what is wrong with each of those that are not.
    """
    wrong: list[str] = []
    others = sorted(path for path in (*folder.glob("checkpoint-*.pth.tar"), folder / BEST) if path.exists())
    if (folder / LAST).exists() and _position(folder / LAST, wrong) is not None:
        return folder / LAST, wrong
    positions = {path: position for path in others if (position := _position(path, wrong)) is not None}
    return max(positions, key=lambda path: positions[path], default=None), wrong


def _position(path: Path, wrong: list[str]) -> tuple[int, int] | None:
    """Epoch and step of a valid checkpoint; (-1, 0) of one that says none. Adds what is wrong with a damaged one."""
    try:
        record = read_record(read_verified(path), path)
    except CheckpointError as error:
        wrong.append(str(error))
        return None
    return (-1, 0) if record is None else (record.epoch, record.step)
