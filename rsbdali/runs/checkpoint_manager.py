"""Which checkpoints of a run stay on the disk, and who writes them: a thread in the background, one file at a time.

    training step ─snapshot (copy to the CPU)─> next step …
                          └─> writer thread: temporary file, fsync, rename, fsync of the folder

`last.pth.tar` is the newest, `model_best.pth.tar` the best, `checkpoint-<epoch>.pth.tar` the best `checkpoint_hist`
epochs. The names share one file by hard links, so an epoch is written once. `last.pth.tar` gets its name last: a run
that is killed before that goes on from the save before, and writes the other names again.

`find_saved` reads a checkpoint that is named, or the newest valid one of its folder; `resume_from` restores it.
"""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from rsbdali.distributed import collectives
from rsbdali.distributed.world import World
from rsbdali.errors import CheckpointError, counted
from rsbdali.runs.checkpoint import link, read_verified, snapshot, sweep, write
from rsbdali.runs.folder import BEST, LAST
from rsbdali.runs.record import Record, read_record
from rsbdali.runs.state import Identity, RunState

log = logging.getLogger(__name__)


class CheckpointManager:
    """Keeps last, best and the top k checkpoints of one run's folder. A context manager: leaving waits for the writer.

    A save copies what it is given and returns; should the save before still be under way, it waits for that one first,
    so at most one copy is held. What goes wrong in the writer is raised by the next call here, at last on leaving.

    Args:
        folder: where they are; it exists. No other process writes checkpoints there.
        keep: k, how many `checkpoint-<epoch>` files stay.
        history: `history` of the checkpoint that a run resumes from.
        first: called in the writer before each checkpoint: brings the run's other files to the disk.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        history: Mapping[str, float] | None = None,
        first: Callable[[], None] | None = None,
    ) -> None:
        self.folder, self.keep, self._first = folder, keep, first
        # name → metric, of the files that are still there
        self.history = {name: metric for name, metric in (history or {}).items() if (folder / name).exists()}
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        sweep(folder)

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.wait()
        except CheckpointError as failed:
            if kind is None:
                raise
            log.error("%s", failed)  # the error that ended the run is reported by whoever catches it
        finally:
            self._writer.shutdown()

    def history_with(self, epoch: int, metric: float) -> dict[str, float]:
        """The k best files, best first, once this epoch is among them; on a tie the earlier epoch wins."""
        entries = [*((n, m) for n, m in self.history.items() if n != _name(epoch)), (_name(epoch), metric)]
        return dict(sorted(entries, key=lambda entry: -entry[1])[: self.keep])

    def save_last(self, content: Mapping[str, Any]) -> None:
        """Save as `last.pth.tar`."""
        self._submit(content, [LAST], [])

    def save_epoch(self, content: Mapping[str, Any], epoch: int, metric: float, *, is_best: bool) -> None:
        """Save at the end of an evaluated epoch, under the names that it has earned."""
        before, self.history = self.history, self.history_with(epoch, metric)
        names = [_name(epoch)] * (_name(epoch) in self.history) + [BEST] * is_best + [LAST]
        self._submit(content, names, sorted(before.keys() - self.history.keys()))

    def check(self) -> None:
        """Raise what went wrong in the writer, if anything did and it is known by now.

        Raises:
            CheckpointError: a save failed.
        """
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            CheckpointError: a save failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _submit(self, content: Mapping[str, Any], names: list[str], dropped: list[str]) -> None:
        self.wait()
        self._pending = self._writer.submit(partial(self._write, snapshot(content), names, dropped))

    def _write(self, content: Mapping[str, Any], names: list[str], dropped: list[str]) -> None:
        if self._first is not None:
            self._first()
        write(content, self.folder / names[0])
        for name in names[1:]:
            link(self.folder / names[0], self.folder / name)
        for name in dropped:
            (self.folder / name).unlink(missing_ok=True)


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


def _name(epoch: int) -> str:
    return f"checkpoint-{epoch}.pth.tar"


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
        raise CheckpointError(f"no checkpoint in {folder} is whole, and a run does not begin over them: {wrong[0]}")
    for problem in wrong:
        log.warning("%s: passed over, %s is the newest whole one", problem, path)
    if path is None:
        log.info("Nothing to resume in %s: the run begins anew", folder)
    return path
