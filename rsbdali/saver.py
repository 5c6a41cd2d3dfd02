"""Which checkpoints of a run stay on the disk.

`last.pth.tar` is the newest, `model_best.pth.tar` the best, `checkpoint-<epoch>.pth.tar` the best `checkpoint_hist`
epochs. The names share one file by hard links, so an epoch is written once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsbdali.checkpoint import link, write

LAST, BEST = "last.pth.tar", "model_best.pth.tar"


class Saver:
    """Keeps last, best and the top k checkpoints of one run's folder.

    Args:
        folder: where they lie; it exists.
        keep: k, how many `checkpoint-<epoch>` files stay.
        history: `history` of the checkpoint that a run resumes from.
    """

    def __init__(self, folder: Path, keep: int, history: Mapping[str, float] | None = None) -> None:
        self.folder, self.keep = folder, keep
        # name → metric, of the files that are still there
        self.history = {name: metric for name, metric in (history or {}).items() if (folder / name).exists()}

    def history_with(self, epoch: int, metric: float) -> dict[str, float]:
        """The k best files, best first, once this epoch is among them; on a tie the earlier epoch wins."""
        entries = [*((n, m) for n, m in self.history.items() if n != _name(epoch)), (_name(epoch), metric)]
        return dict(sorted(entries, key=lambda entry: -entry[1])[: self.keep])

    def save_last(self, content: Mapping[str, Any]) -> Path:
        """Write `last.pth.tar`."""
        path = self.folder / LAST
        write(content, path)
        return path

    def save_epoch(self, content: Mapping[str, Any], epoch: int, metric: float, *, is_best: bool) -> None:
        """Write `last.pth.tar` at the end of an evaluated epoch, and give it the names it has earned."""
        last = self.save_last(content)
        before, self.history = self.history, self.history_with(epoch, metric)
        if _name(epoch) in self.history:
            link(last, self.folder / _name(epoch))
        if is_best:
            link(last, self.folder / BEST)
        for name in before.keys() - self.history.keys():
            (self.folder / name).unlink(missing_ok=True)


def _name(epoch: int) -> str:
    return f"checkpoint-{epoch}.pth.tar"
