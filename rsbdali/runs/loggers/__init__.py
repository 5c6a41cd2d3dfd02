"""Services for a run's figures: TensorBoard, Weights & Biases, MLflow, each behind the same three calls.

    metrics.jsonl line ─> RunLog.observe ─> Logger.log of each service        rank 0 alone

`summary.csv` and `metrics.jsonl` are written in any case (`rsbdali.runs.folder`); services get the same figures, under
the names and steps that `run_log.py` gives them. Each service's package is an extra: in a clone `pip install
'.[wandb]'`.
"""

import importlib.util
from collections.abc import Iterable

from rsbdali.errors import RsbdaliError
from rsbdali.runs.loggers.base import Logger, RunPosition, Status

__all__ = ["PACKAGES", "Logger", "RunPosition", "Status", "make_logger", "require"]

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Name of a service, also of its extra → the package that it needs."""

PROJECTS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny"}
"""What pip calls that package."""


def require(names: Iterable[str]) -> None:
    """Check that the packages of these services are installed, before anything costly starts.

    Raises:
        RsbdaliError: names the first one that is missing and the command that installs it.
    """
    for name in names:
        if name not in PACKAGES:
            raise RsbdaliError(f"--log {name}: unknown, expected {', '.join(PACKAGES)}")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise RsbdaliError(f"--log {name} needs a package: pip install {PROJECTS[name]}")


def make_logger(name: str, position: RunPosition) -> Logger:
    """The logger of a service; `require` was asked before.

    Args:
        name: a key of PACKAGES.
        position: of the run.
    """
    if name == "tensorboard":
        from rsbdali.runs.loggers.tensorboard import TensorBoardLogger

        return TensorBoardLogger(position)
    if name == "wandb":
        from rsbdali.runs.loggers.weights_biases import WandbLogger

        return WandbLogger(position)
    from rsbdali.runs.loggers.mlflow import MlflowLogger

    return MlflowLogger(position)
