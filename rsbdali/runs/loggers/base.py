"""What a service that keeps figures has to do, and where a run's records go."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Status = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class RunPosition:
    """Where a run's records go.

    Attributes:
        folder: the run's, with `summary.csv` and the checkpoints.
        step: optimizer steps that are done before the first new record.
        resumed: whether the run goes on, so that the service's record does too.
    """

    folder: Path
    step: int = 0
    resumed: bool = False


class Logger(Protocol):
    """A service that keeps figures of runs."""

    def start(self, config: Mapping[str, Any]) -> None:
        """Open the record of the run, or go on with it.

        Args:
            config: settings and facts (recipe keys, versions, device, …), plain values.

        Raises:
            RsbdaliError: the service cannot be used as it is set up; the message says what would help.
        """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add figures. A service that fails meanwhile is warned about and never ends the run.

        Args:
            step: optimizer steps done since the run began.
            values: by name, such as `eval/top1` (per cent).
        """

    def finish(self, status: Status) -> None:
        """Close the record: `stopped` is a run that a signal ended and that can go on."""
