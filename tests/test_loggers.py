"""TensorBoard, Weights & Biases (offline) and MLflow (a file store) get a run's figures, and a resumed run goes on."""

import importlib.util
import json
import logging
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from helpers.common import TINY
from rsbdali.cli.main import cli
from rsbdali.errors import RsbdaliError
from rsbdali.runs import loggers
from rsbdali.runs.loggers import RunPosition, make_logger, require
from rsbdali.runs.loggers.run_ids import read_id, write_id
from rsbdali.runs.loggers.run_log import LoggedFolder, RunLog, open_loggers

STEP = {"kind": "step", "epoch": 1, "step": 2, "loss": 0.5, "lr": 0.1, "images_per_s": 9.0, "wait_share": 0.2}
EPOCH = {"kind": "epoch", "epoch": 1, "train_loss": 0.4, "lr": 0.1, "eval_top1": 60.0, "eval_raw_top1": 58.0}
CONFIG = {"model": "resnet50", "lr": 0.008, "scale": [0.08, 1.0], "clip_grad": None, "data": "somewhere"}


class Notebook:
    """A logger that remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def start(self, config: Mapping[str, Any]) -> None:
        self.calls.append(("start", dict(config)))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.calls.append(("log", step, dict(values)))

    def finish(self, status: loggers.Status) -> None:
        self.calls.append(("finish", status))


@pytest.fixture(autouse=True)
def stores_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No service reaches a network or this user's settings."""
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # what a user without a server sets


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log, which a .wandb file is behind 7 bytes of its own: pieces in blocks of 32 KiB."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits there: padding
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield whole
            whole = b""


def wandb_records(folder: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in log_records(path.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            yield record


def wandb_history(folder: Path) -> list[dict[str, float]]:
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(folder)
        if record.HasField("history")
    ]
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]


def mlflow_history(run_id: str, name: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    return [(m.step, m.value) for m in MlflowClient().get_metric_history(run_id, name)]


def test_names_and_steps() -> None:
    notebook = Notebook()
    with RunLog([notebook], CONFIG, steps_per_epoch=10) as run_log:
        run_log.observe(STEP)
        run_log.observe(EPOCH)
        run_log.observe({"kind": "note", "epoch": 1, "text": "not a figure"})
        run_log.observe({**STEP, "loss": None, "flag": True, "why": "text"})
    rest = {"train/lr": 0.1, "train/images_per_s": 9.0, "train/wait_share": 0.2}
    epoch = {"epoch/train_loss": 0.4, "epoch/lr": 0.1, "eval/top1": 60.0, "eval/raw_top1": 58.0}
    assert notebook.calls == [
        ("start", CONFIG),
        ("log", 12, {"train/loss": 0.5, **rest}),
        ("log", 20, epoch),
        ("log", 12, rest),
        ("finish", "finished"),
    ]


def test_the_status_of_a_run() -> None:
    stopped, failed = Notebook(), Notebook()
    with RunLog([stopped], {}, 1) as run_log:
        run_log.status = "stopped"
    with pytest.raises(ZeroDivisionError), RunLog([failed], {}, 1):
        raise ZeroDivisionError
    assert stopped.calls[-1] == ("finish", "stopped")
    assert failed.calls[-1] == ("finish", "failed")


def test_a_service_that_does_not_start_closes_those_before_it() -> None:
    class Refuses(Notebook):
        def start(self, config: Mapping[str, Any]) -> None:
            raise RsbdaliError("nobody is logged in")

    first = Notebook()
    with pytest.raises(RsbdaliError, match="logged in"), RunLog([first, Refuses()], {}, 1):
        pass
    assert [call[0] for call in first.calls] == ["start", "finish"]


def test_the_file_has_what_the_services_get(tmp_path: Path) -> None:
    notebook = Notebook()
    with RunLog([notebook], {}, 10) as run_log:
        LoggedFolder(tmp_path, run_log).add_epoch({"epoch": 0, "train_loss": 2.0, "lr": 0.1}, {"images_per_s": 3.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["images_per_s"] == 3.0
    assert (tmp_path / "summary.csv").read_text().endswith("0,2.0,,,,0.1\n")
    assert notebook.calls[1] == ("log", 10, {"epoch/train_loss": 2.0, "epoch/lr": 0.1, "epoch/images_per_s": 3.0})


def test_each_service_once(tmp_path: Path) -> None:
    made = open_loggers(("tensorboard", "mlflow", "tensorboard"), RunPosition(folder=tmp_path))
    assert [type(logger).__name__ for logger in made] == ["TensorBoardLogger", "MlflowLogger"]


@pytest.mark.parametrize("name", list(loggers.PACKAGES))
def test_a_missing_package(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(RsbdaliError, match=rf"^--log {name} needs a package: pip install {name}(-skinny)?$"):
        require([name])
    # the command says so before it looks at anything else
    result = CliRunner().invoke(cli, ["train", "--log", name, "--data", str(tmp_path / "nowhere"), "--device", "cpu"])
    assert "needs a package" in str(result.exception)
    require([])


def test_an_unknown_service() -> None:
    with pytest.raises(RsbdaliError, match=r"--log comet: unknown, expected tensorboard, wandb, mlflow"):
        require(["comet"])


def test_tensorboard(tmp_path: Path) -> None:
    first = make_logger("tensorboard", RunPosition(folder=tmp_path))
    first.start(CONFIG)
    for step in (1, 2, 3):
        first.log(step, {"train/loss": float(step)})
    first.finish("stopped")
    again = make_logger("tensorboard", RunPosition(folder=tmp_path, step=2, resumed=True))
    again.start(CONFIG)
    again.log(4, {"train/loss": 40.0})
    again.finish("finished")
    assert scalars(tmp_path) == {"train/loss": {1: 1.0, 2: 2.0, 4: 40.0}}  # step 3 was done again, and left no mark


def test_wandb_goes_on_under_the_same_id(tmp_path: Path) -> None:
    for step, resumed in ((1, False), (2, True)):
        logger = make_logger("wandb", RunPosition(folder=tmp_path, resumed=resumed))
        logger.start(CONFIG)
        logger.log(step, {"eval/top1": 10.0 * step})
        logger.finish("finished" if resumed else "stopped")
    assert wandb_history(tmp_path) == [{"step": 1, "eval/top1": 10.0}, {"step": 2, "eval/top1": 20.0}]
    runs = [record.run for record in wandb_records(tmp_path) if record.HasField("run")]
    assert {run.run_id for run in runs} == {read_id(tmp_path, "wandb")}
    assert {run.project for run in runs} == {"rsbdali"}
    kept = {item.key: json.loads(item.value_json) for item in runs[0].config.update if item.key != "_wandb"}
    assert kept == CONFIG
    fresh = make_logger("wandb", RunPosition(folder=tmp_path))
    fresh.start(CONFIG)
    fresh.finish("finished")
    assert read_id(tmp_path, "wandb") != runs[0].run_id  # a run that begins anew is a new one there


def test_mlflow_goes_on_in_the_same_run(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    ids = set()
    for step, resumed in ((1, False), (2, True)):
        logger = make_logger("mlflow", RunPosition(folder=tmp_path / "run", resumed=resumed))
        (tmp_path / "run").mkdir(exist_ok=True)
        logger.start({**CONFIG, "lr": 0.008 * step})  # MLflow refuses to change a parameter: it keeps the first
        logger.log(step, {"eval/top1": 10.0 * step})
        logger.finish("finished" if resumed else "stopped")
        ids.add(read_id(tmp_path / "run", "mlflow"))
        run = MlflowClient().get_run(str(read_id(tmp_path / "run", "mlflow")))
        assert run.info.status == ("FINISHED" if resumed else "KILLED")
    assert len(ids) == 1
    assert mlflow_history(ids.pop(), "eval/top1") == [(1, 10.0), (2, 20.0)]
    assert run.data.params == {key: str(value) for key, value in CONFIG.items()}
    assert run.info.run_name == "run"


def test_mlflow_store_that_fails_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = make_logger("mlflow", RunPosition(folder=tmp_path))
    logger.start(CONFIG)
    logger._run_id = "0" * 32  # as if somebody had removed the run meanwhile
    with caplog.at_level(logging.WARNING, logger="rsbdali"):
        logger.log(1, {"eval/top1": 1.0})
        logger.finish("finished")
    assert "MLflow lost 1 of 1 record: metrics.jsonl has them all" in caplog.text
    assert "MLflow did not take the end of the run" in caplog.text


def test_mlflow_without_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    with pytest.raises(RsbdaliError, match=r"--log mlflow: .*maintenance mode.*set MLFLOW_TRACKING_URI") as caught:
        make_logger("mlflow", RunPosition(folder=tmp_path)).start(CONFIG)
    assert "\n" not in str(caught.value)


def test_wandb_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.\nmore")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(RsbdaliError, match=r"^--log wandb: No API key configured.* WANDB_MODE=offline\)$"):
        make_logger("wandb", RunPosition(folder=tmp_path)).start(CONFIG)


def test_ids_are_kept(tmp_path: Path) -> None:
    assert read_id(tmp_path, "wandb") is None
    write_id(tmp_path, "wandb", "one")
    write_id(tmp_path, "mlflow", "two")
    assert (read_id(tmp_path, "wandb"), read_id(tmp_path, "mlflow")) == ("one", "two")
    for damage in ("{", "[]"):
        (tmp_path / "loggers.json").write_text(damage)
        with pytest.raises(RsbdaliError, match=r"loggers\.json is damaged: remove it"):
            read_id(tmp_path, "wandb")


def test_a_real_run_and_its_resume(image_tree: Callable[..., Path], tmp_path: Path) -> None:
    """`rsbdali train --log …` with all three: the services hold what metrics.jsonl holds."""
    data = image_tree(per_class=4).parent
    image_tree(per_class=2, split="val")
    small = {**TINY, "global_batch_size": 4, "log_interval": 1}
    pairs = [f"--set={key}={value}" for key, value in {**small, "mix_groups": 1, "warmup_epochs": 0}.items()]
    common = ["--data", str(data), "--device", "cpu", "-j", "1", "--output", str(tmp_path), "--experiment", "run"]
    services = [word for name in loggers.PACKAGES for word in ("--log", name)]
    folder, ids = tmp_path / "run", []
    for epochs in (1, 2):
        more = ["--set", f"epochs={epochs}", "--resume", "auto"]
        result = CliRunner().invoke(cli, ["train", *common, *services, *pairs, *more])
        assert result.exception is None or result.exit_code == 0, result.exception
        ids.append(json.loads((folder / "loggers.json").read_text()))
    assert ids[0] == ids[1]
    assert ids[0].keys() == {"wandb", "mlflow"}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    loss = {3 * r["epoch"] + r["step"]: r["loss"] for r in records if r["kind"] == "step"}
    top1 = {3 * (r["epoch"] + 1): r["eval_top1"] for r in records if r["kind"] == "epoch"}
    assert list(loss) == [1, 2, 3, 4, 5, 6]
    assert list(top1) == [3, 6]
    seen = scalars(folder)
    assert seen["train/loss"] == pytest.approx(loss, rel=1e-6)  # TensorBoard keeps float32
    assert seen["eval/top1"] == pytest.approx(top1, rel=1e-6)
    assert dict(mlflow_history(ids[0]["mlflow"], "train/loss")) == loss
    assert dict(mlflow_history(ids[0]["mlflow"], "eval/top1")) == top1
    history = wandb_history(folder)
    assert {row["step"]: row["train/loss"] for row in history if "train/loss" in row} == loss
    assert {row["step"]: row["eval/top1"] for row in history if "eval/top1" in row} == top1
