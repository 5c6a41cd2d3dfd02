"""Weights & Biases. Its own settings hold: WANDB_MODE=offline keeps all in `<run>/wandb` for a later `wandb sync`."""

import os
import uuid
from collections.abc import Mapping
from typing import Any

from rsbdali.errors import RsbdaliError
from rsbdali.runs.loggers.base import RunPosition, Status
from rsbdali.runs.loggers.run_ids import read_id, write_id

PROJECT = "rsbdali"


class WandbLogger:
    """One W&B run for one run folder, in project `rsbdali` or WANDB_PROJECT.

    A resumed run goes on under the same id. W&B takes steps in rising order only, so ours is a value of its own, the
    x axis of all charts: steps that a resumed run does again are drawn where they belong.

    Args:
        position: of the run.
    """

    def __init__(self, position: RunPosition) -> None:
        self._position = position
        self._run: Any = None

    def start(self, config: Mapping[str, Any]) -> None:
        """Start or go on; W&B may ask for a login here.

        Raises:
            RsbdaliError: W&B refused, for example because no user is logged in.
        """
        import wandb

        folder = self._position.folder
        known = read_id(folder, "wandb") if self._position.resumed else None
        run_id = known or uuid.uuid4().hex[:12]
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=folder.name,
                dir=str(folder),
                id=run_id,
                resume="allow" if known else None,
                config=dict(config),
                settings=wandb.Settings(console="off"),  # the live display would fill its log
            )
        except wandb.errors.Error as error:
            reason = str(error).strip().splitlines()[0]
            raise RsbdaliError(f"--log wandb: {reason} (log in by `wandb login`, or set WANDB_MODE=offline)") from error
        write_id(folder, "wandb", run_id)
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the figures to W&B's own process."""
        self._run.log({**values, "step": step})

    def finish(self, status: Status) -> None:
        """Wait until all is sent or written."""
        if status == "stopped":
            self._run.mark_preempting()  # shown as preempted, not as crashed
        self._run.finish(exit_code=0 if status == "finished" else 1)
