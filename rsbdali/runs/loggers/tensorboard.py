"""TensorBoard: event files in `<run>/tensorboard`, which `tensorboard --logdir output` reads for all runs at once."""

from collections.abc import Mapping
from typing import Any

from rsbdali.runs.loggers.base import RunPosition, Status


class TensorBoardLogger:
    """Writes event files. On a resume TensorBoard drops what the run does again.

    Args:
        position: of the run.
    """

    def __init__(self, position: RunPosition) -> None:
        self._position = position
        self._writer: Any = None

    def start(self, config: Mapping[str, Any]) -> None:
        """Open the event file; the settings become a text."""
        from torch.utils.tensorboard import SummaryWriter

        purge = self._position.step + 1 if self._position.resumed else None
        self._writer = SummaryWriter(str(self._position.folder / "tensorboard"), purge_step=purge)
        rows = "\n".join(f"    {key}: {value}" for key, value in config.items())
        self._writer.add_text("settings", rows, self._position.step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar a name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, status: Status) -> None:
        """Flush and close."""
        self._writer.close()
