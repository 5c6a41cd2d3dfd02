"""Which checkpoints of a run stay on the disk, and who writes them: a thread in the background, one file at a time.

    training step ─snapshot (copy to the CPU)─> next step …
                          └─> writer thread: temporary file, fsync, rename, fsync of the folder

`last.pth.tar` is the newest, `model_best.pth.tar` the best, `checkpoint-<epoch>.pth.tar` the best `checkpoint_hist`
epochs. The names share one file by hard links, so an epoch is written once. `last.pth.tar` gets its name last: a run
that is killed before that goes on from the save before, and writes the other names again.
"""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from rsbdali.errors import CheckpointError
from rsbdali.runs.checkpoint import link, snapshot, sweep, write
from rsbdali.runs.folder import BEST, LAST

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


def _name(epoch: int) -> str:
    return f"checkpoint-{epoch}.pth.tar"
