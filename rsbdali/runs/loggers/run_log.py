"""The services of a run as one: gets each line of `metrics.jsonl`, gives it names and a step, passes it on.

    kind    step                              names
    step    steps done in the run             train/loss (mean of the epoch so far), train/lr, train/images_per_s, …
    epoch   steps done at the epoch's end     epoch/train_loss, epoch/images_per_s, …, eval/loss, eval/top1, eval/top5

Steps count from the start of the run, so curves of an epoch and of its steps share one axis.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rsbdali.errors import RsbdaliError
from rsbdali.runs.folder import RunFolder
from rsbdali.runs.loggers import Logger, RunPosition, Status, make_logger


class RunLog:
    """Starts the services on entry, finishes them on exit: `failed` after an exception, else as `status` says.

    Args:
        loggers: of the services.
        config: settings and facts for their records.
        steps_per_epoch: optimizer steps, which give the step of an epoch's line.

    Attributes:
        status: what the run ended as, if no exception ends it.
    """

    def __init__(self, loggers: Sequence[Logger], config: Mapping[str, Any], steps_per_epoch: int) -> None:
        self._loggers, self._config, self._steps_per_epoch = loggers, config, steps_per_epoch
        self._started: list[Logger] = []
        self.status: Status = "finished"

    def __enter__(self) -> Self:
        for logger in self._loggers:
            try:
                logger.start(self._config)
            except BaseException:
                self._finish("failed")  # those that were started before it
                raise
            self._started.append(logger)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._finish("failed" if kind is not None else self.status)

    def observe(self, record: Mapping[str, Any]) -> None:
        """Pass a line of `metrics.jsonl` on; lines of other kinds and values that are no numbers are left out."""
        if record.get("kind") not in ("step", "epoch"):
            return
        is_epoch = record["kind"] == "epoch"
        step = (record["epoch"] + is_epoch) * self._steps_per_epoch + (0 if is_epoch else record["step"])
        values = {_name(key, is_epoch): value for key, value in record.items() if key not in ("step", "epoch")}
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        for logger in self._started:
            logger.log(step, numbers)

    def _finish(self, status: Status) -> None:
        while self._started:
            self._started.pop().finish(status)


def _name(key: str, is_epoch: bool) -> str:
    if not is_epoch:
        return f"train/{key}"
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"epoch/{key}"


class LoggedFolder(RunFolder):
    """A `RunFolder` whose metrics the services get too.

    Args:
        path: as RunFolder's.
        run_log: entered already.
        epoch: as RunFolder's.
        step: as RunFolder's.
    """

    def __init__(self, path: Path, run_log: RunLog, *, epoch: int = 0, step: int = 0) -> None:
        super().__init__(path, epoch=epoch, step=step)
        self._run_log = run_log

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to `metrics.jsonl`, and pass it to the services."""
        super().add_metrics(record)
        self._run_log.observe(record)


def open_loggers(names: Sequence[str], position: RunPosition) -> list[Logger]:
    """The loggers of these services, each once, in the order of their names.

    Raises:
        RsbdaliError: the run's folder has a name that is not UTF-8, which none of them takes.
    """
    if names and not str(position.folder).isprintable():
        raise RsbdaliError(f"--log {names[0]}: takes only a folder whose name can be printed, unlike {position.folder}")
    return [make_logger(name, position) for name in dict.fromkeys(names)]
