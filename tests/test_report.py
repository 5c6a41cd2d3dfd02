"""Pace by a clock of our own, the projection against the budget, live display and plain lines."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from rsbdali.recipe import Recipe
from rsbdali.training.evaluate import EvalResult
from rsbdali.training.live_display import EpochReport, Live, Plain, StepReport, make_reporter
from rsbdali.training.throughput import Speed, ThroughputMeter, duration, evaluations_left, is_evaluated, projection

SPEED = Speed(images_per_s=1234.5, wait_share=0.031, left_s=7200.0, total_s=6.2 * 3600)
RESULT = EvalResult(top1=61.25, top5=83.5, loss=1.5, n=1000)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_pace_of_a_run() -> None:
    recipe = Recipe.load("a3", {"epochs": 10, "global_batch_size": 100, "mix_groups": 1, "log_interval": 2})
    clock = Clock()
    pace = ThroughputMeter(recipe, 5, clock)
    pace.start_epoch(0.0)
    for step in range(5):
        clock.now += 10.0 if step == 0 else 2.0  # the first one starts up
        pace.step(0.5 * (step + 1))
    speed = pace.speed(0, 5)
    assert speed.images_per_s == pytest.approx(100 / 2.0)  # over the last two steps
    assert speed.wait_share == pytest.approx(0.5 / 2.0)
    assert speed.total_s == pytest.approx(50 * 2.0)
    assert pace.epoch_speed(0).images_per_s == pytest.approx(500 / 18.0)
    pace.evaluated(7.0)
    assert pace.speed(9, 3).left_s == pytest.approx(2 * 2.0 + 7.0)
    assert pace.speed(0, 0).total_s == pytest.approx(50 * 2.0 + 10 * 7.0)


def test_no_estimate_is_made_from_one_step() -> None:
    pace = ThroughputMeter(Recipe.load("a3"), 5, Clock())
    pace.start_epoch(0.0)
    pace.step(0.0)
    assert pace.speed(0, 1) == Speed(0.0, 0.0, None, None)


def test_which_epochs_are_evaluated() -> None:
    assert [e for e in range(10) if is_evaluated(e, 4, 10)] == [3, 7, 9]
    for every in range(1, 7):
        for epochs in range(1, 13):
            for first in range(epochs + 1):
                counted = sum(is_evaluated(e, every, epochs) for e in range(first, epochs))
                assert evaluations_left(first, every, epochs) == counted


@pytest.mark.parametrize(("seconds", "text"), [(45.2, "45 s"), (720, "12 min"), (22320, "6.2 h"), (0, "0 s")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_projection_against_the_budget() -> None:
    assert projection(Recipe.load("a3"), 6.2 * 3600) == "A3: 100 epochs in 6.2 h of 15 h"
    # a shorter run has no budget to be held against
    assert projection(Recipe.load("a3", {"epochs": 2}), 600) == "A3: 2 epochs in 10 min"


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_plain_lines(caplog: pytest.LogCaptureFixture) -> None:
    recipe = Recipe.load("a3", {"log_interval": 50})
    plain = Plain(recipe, 100)
    with caplog.at_level("INFO"):
        for step in range(1, 101):
            plain.step(StepReport(2, step, 0.00612, 6.4e-3, SPEED, 60.0))
        plain.epoch(EpochReport(2, 0.006, 6.4e-3, SPEED, RESULT, 61.25))
        plain.epoch(EpochReport(3, 0.006, 6.4e-3, SPEED, None, 61.25))
    assert lines_of(caplog) == [
        "epoch 3/100 step 50/100  BCE 0.006120  1234 img/s  wait 3%  left 2.0 h  lr 0.0064",
        "epoch 3/100  BCE 0.006000  CE 1.500  top-1 61.25 %  best 61.25 %  1234 img/s  wait 3%  left 2.0 h",
        "at this pace A3: 100 epochs in 6.2 h of 15 h",
        "epoch 4/100  BCE 0.006000  1234 img/s  wait 3%  left 2.0 h",
    ]


@pytest.fixture
def terminal() -> Callable[[bool], Console]:
    return lambda is_terminal: Console(
        file=io.StringIO(), force_terminal=is_terminal, width=160, color_system=None, legacy_windows=False
    )


def test_live_display(terminal: Callable[[bool], Console]) -> None:
    console = terminal(True)
    live = make_reporter(Recipe.load("a3"), 100, epoch=2, console=console)
    assert isinstance(live, Live)
    live.step(StepReport(2, 7, 0.00612, 6.4e-3, SPEED, 60.0))
    live._progress.refresh()
    live.evaluating()
    live._progress.refresh()
    live.epoch(EpochReport(2, 0.006, 6.4e-3, SPEED, RESULT, 61.25))
    live.close()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in (
        "2/100",
        "7/100",
        "BCE 0.006120",
        "1234 img/s",
        "wait 3%",
        "left 2.0 h",
        "best top-1 60.00 %",
        "A3: 100 epochs in 6.2 h of 15 h",
        "evaluate",
        "top-1 61.25 %",
        "3/100",
    ):
        assert text in shown, text


def test_no_terminal_means_plain_lines(terminal: Callable[[bool], Console]) -> None:
    assert isinstance(make_reporter(Recipe.load("a3"), 100, epoch=0, console=terminal(False)), Plain)
