"""The loop of a run on a toy problem: learns, evaluates, stops on signals. How it goes on: test_resume.py."""

import csv
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rsbdali.errors import RecipeError


def content(run: Path) -> dict[str, Any]:
    return torch.load(run / "last.pth.tar", weights_only=True)  # type: ignore[no-any-return]


def test_it_learns_and_writes_everything(toy: Callable[..., Any], tmp_path: Path) -> None:
    run = toy(epochs=4, steps=6, checkpoint_hist=2)
    outcome = run.go()
    assert outcome.epochs == 4
    assert outcome.signal is None
    assert outcome.best_top1 is not None
    assert outcome.best_top1 > 60  # chance is 25
    with (tmp_path / "run/summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert float(rows[-1]["eval_top1"]) == outcome.last.top1 if outcome.last else False
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert sum(r["kind"] == "step" for r in records) == 24
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"last.pth.tar", "model_best.pth.tar"} <= names
    assert sum(name.startswith("checkpoint-") for name in names) == 2
    assert content(tmp_path / "run")["metric"] == outcome.last.top1 if outcome.last else False
    assert len(run.listener.steps) == 24
    assert len(run.listener.epochs) == 4


def test_every_group_of_every_step_is_seen_once(toy: Callable[..., Any]) -> None:
    run = toy(epochs=2, mix_groups=4)
    run.go()
    assert run.loader.seen == [(e, s, g) for e in range(2) for s in range(3) for g in range(4)]


def test_a_signal_in_the_evaluation(toy: Callable[..., Any], tmp_path: Path) -> None:
    run = toy(epochs=1)
    batches = list(run.eval_loader)

    class Interrupting:
        def __iter__(self) -> Iterator[object]:
            os.kill(os.getpid(), signal.SIGINT)
            return iter(batches)

    run.trainer.eval_loader = Interrupting()  # type: ignore[assignment]
    assert run.go().signal is signal.SIGINT
    assert content(tmp_path / "run")["rsbdali"]["position"] == {"epoch": 0, "step": 3}
    again = toy(epochs=1)
    assert again.go().last is not None
    assert again.loader.seen == []  # only the evaluation was left


def test_signal_handlers_are_put_back(toy: Callable[..., Any]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    toy(epochs=1, steps=1).go()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_finished_run_is_left_alone(toy: Callable[..., Any], tmp_path: Path) -> None:
    toy(epochs=1).go()
    before = (tmp_path / "run/last.pth.tar").read_bytes()
    outcome = toy(epochs=1).go()
    assert outcome.epochs == 1
    assert (tmp_path / "run/last.pth.tar").read_bytes() == before


def test_evaluation_every_other_epoch_and_the_last(toy: Callable[..., Any], tmp_path: Path) -> None:
    run = toy(epochs=5, steps=1, eval_every=2)
    run.go()
    assert [report.result is not None for report in run.listener.epochs] == [False, True, False, True, True]
    with (tmp_path / "run/summary.csv").open() as file:
        assert [bool(row["eval_top1"]) for row in csv.DictReader(file)] == [False, True, False, True, True]


def test_averaged_weights_count_and_raw_ones_are_noted(toy: Callable[..., Any], tmp_path: Path) -> None:
    run = toy(epochs=1, model_ema=True, model_ema_decay=0.99999)
    outcome = run.go()
    record = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert outcome.last is not None
    assert record["eval_top1"] == outcome.last.top1
    assert record["eval_raw_loss"] != record["eval_loss"]


def test_a_loss_that_is_not_finite_ends_the_run_in_time(toy: Callable[..., Any], tmp_path: Path) -> None:
    toy(epochs=1).go()
    good = content(tmp_path / "run")
    run = toy(epochs=2, lr=0.1, steps=9)
    with torch.no_grad():
        run.state.model.fc.weight.fill_(float("nan"))
    with pytest.raises(
        RecipeError, match=r"the loss was nan in epoch 2 step 1: its images are listed in .*nan-1-0\.json"
    ):
        run.go()
    assert torch.equal(content(tmp_path / "run")["state_dict"]["fc.weight"], good["state_dict"]["fc.weight"])


def test_gradscaler_skips_and_the_run_goes_on(toy: Callable[..., Any]) -> None:
    run = toy(epochs=1, steps=4, amp_dtype="float16")
    run.trainer._step.amp_dtype = torch.float16
    run.state.scaler.load_state_dict({**run.state.scaler.state_dict(), "scale": 2.0**40})
    before = run.state.scaler.get_scale()
    run.go()
    assert run.state.scaler.get_scale() < before
    assert all(p.isfinite().all() for p in run.state.model.parameters())
