"""Where a run goes on: at a checkpoint that somebody names, or at the newest one of its folder that is whole."""

import logging
from pathlib import Path

from rsbdali.distributed import process_group as distributed
from rsbdali.distributed.process_group import World
from rsbdali.errors import CheckpointError
from rsbdali.runs import checkpoint
from rsbdali.runs.checkpoint_manager import newest_whole
from rsbdali.runs.state import Identity, RunState

ALONE = World()
log = logging.getLogger(__name__)


def resume_from(
    state: RunState, identity: Identity, resume: str | None, folder: Path, world: World = ALONE
) -> None:
    """Take a run up from `resume`: a path, or 'auto' for the folder's newest whole checkpoint, if there is one.

    Raises:
        CheckpointError: the file is damaged or of another run; with 'auto', there are checkpoints and none is whole.
    """
    path = _newest(folder, world) if resume == "auto" else resume and Path(resume)
    if not path:
        return
    content = distributed.together(lambda: checkpoint.read_verified(path), world)
    distributed.together(lambda: state.restore(content, identity, path), world)
    log.info("Goes on from %s: epoch %d, step %d", path, state.epoch + 1, state.step)


def _newest(folder: Path, world: World) -> Path | None:
    """Rank 0's choice, on every rank: the others may see a shared folder as it was some moments ago."""
    path, wrong = distributed.from_primary(newest_whole(folder) if world.is_primary else (None, []), world)
    if path is None and wrong:
        raise CheckpointError(f"no checkpoint in {folder} is whole, and a run does not begin over them: {wrong[0]}")
    for problem in wrong:
        log.warning("%s: passed over, %s is the newest whole one", problem, path)
    if path is None:
        log.info("Nothing to resume in %s: the run begins anew", folder)
    return path
