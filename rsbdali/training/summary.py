"""How a run ended, and the lines that say so."""

from dataclasses import dataclass
from pathlib import Path

from rsbdali.distributed.launch import exit_code
from rsbdali.runs.folder import BEST, LAST
from rsbdali.training.trainer import Outcome


@dataclass(frozen=True)
class TrainSummary:
    """How a run ended.

    Attributes:
        folder: its files.
        outcome: epochs done, best and last evaluation, the signal that ended it, if one did.
        seconds: of the whole run, all sessions together.
        is_rank_zero: whether this process prints.
        again: the command that goes on with it.
    """

    folder: Path
    outcome: Outcome
    seconds: float
    is_rank_zero: bool
    again: str

    @property
    def exit_code(self) -> int:
        """0, or the exit code of the signal that stopped the run: 130 on an interrupt, else 143."""
        return 0 if self.outcome.signal is None else exit_code(self.outcome.signal)

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint where there is one, else the last."""
        best = self.folder / BEST
        return best if best.exists() else self.folder / LAST

    def lines(self) -> list[str]:
        """What rank 0 prints last: how to go on after a signal, best top-1, where the checkpoint is."""
        outcome, lines = self.outcome, []
        if not self.is_rank_zero:
            return []
        if outcome.signal is not None:
            lines.append(f"stopped by {outcome.signal.name} in epoch {outcome.epochs + 1}, saved; go on with")
            lines.append(f"  {self.again}")
        if outcome.is_idle:
            done = f"all {outcome.epochs} epochs are" if outcome.epochs > 1 else "its one epoch is"
            lines.append(f"nothing is left: {done} done; more of them, at rates drawn anew, with")
            lines.append(f"  {self.again} --epochs {2 * outcome.epochs}")
        if outcome.best_top1 is not None and outcome.best_epoch is not None:
            # files count epochs from 0, as timm's do
            lines.append(f"best top-1 {outcome.best_top1:.2f} % (epoch {outcome.best_epoch + 1}, {self._best_file})")
        return [*lines, f"checkpoint {self.checkpoint}"]

    @property
    def _best_file(self) -> str:
        name = f"checkpoint-{self.outcome.best_epoch}.pth.tar"
        return name if (self.folder / name).exists() else BEST
