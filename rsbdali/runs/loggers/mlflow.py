"""MLflow: to the server or store that MLFLOW_TRACKING_URI names, else to MLflow's own default.

Figures are sent by MLflow's threads, so that a slow server holds no step up.
"""

import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rsbdali.errors import RsbdaliError, counted
from rsbdali.runs.loggers.base import RunPosition, Status
from rsbdali.runs.loggers.run_ids import read_id, write_id

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

EXPERIMENT = "rsbdali"
STATUS: dict[Status, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
LONGEST_PARAMETER = 6000  # characters that MLflow takes
HINT = "set MLFLOW_TRACKING_URI to a server, or install the whole `mlflow` for a local sqlite store"


class MlflowLogger:
    """One MLflow run for one run folder, in experiment `rsbdali` or MLFLOW_EXPERIMENT_NAME.

    Args:
        position: of the run.
    """

    def __init__(self, position: RunPosition) -> None:
        self._position = position
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._sending: list[Any] = []

    def start(self, config: Mapping[str, Any]) -> None:
        """Create the run with the settings as its parameters, or take it up again.

        Raises:
            RsbdaliError: the store cannot be used, or no longer knows the run.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        known = read_id(self._position.folder, "mlflow") if self._position.resumed else None
        try:
            self._client = MlflowClient()
            if known:
                self._client.update_run(known, status="RUNNING")
                self._run_id = known
            else:
                self._run_id = _create_run(self._client, self._position.folder.name, config)
        except MlflowException as error:
            reason = str(error).strip().splitlines()[0].split(". ")[0]
            raise RsbdaliError(f"--log mlflow: {reason} ({HINT})") from error
        write_id(self._position.folder, "mlflow", self._run_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the figures for sending."""
        from mlflow.entities import Metric

        assert self._client is not None
        now_ms = time.time_ns() // 1_000_000
        metrics = [Metric(name, value, now_ms, step) for name, value in values.items()]
        self._sending.append(self._client.log_batch(self._run_id, metrics=metrics, synchronous=False))

    def finish(self, status: Status) -> None:
        """Wait for what is still queued, and set the run's status; a store that fails costs a warning."""
        from mlflow.exceptions import MlflowException

        assert self._client is not None
        lost = 0
        for operation in self._sending:
            try:
                operation.wait()
            except MlflowException:
                lost += 1
        if lost:
            log.warning("MLflow lost %d of %s: metrics.jsonl has them all", lost, counted(len(self._sending), "record"))
        try:
            self._client.set_terminated(self._run_id, STATUS[status])
        except MlflowException as error:
            log.warning("MLflow did not take the end of the run: %s", str(error).splitlines()[0])


def _create_run(client: "MlflowClient", name: str, config: Mapping[str, Any]) -> str:
    from mlflow.entities import Param

    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found is not None else client.create_experiment(experiment)
    run = client.create_run(experiment_id, run_name=name)
    parameters = [Param(key, str(value)[:LONGEST_PARAMETER]) for key, value in config.items()]
    client.log_batch(run.info.run_id, params=parameters)
    return str(run.info.run_id)
