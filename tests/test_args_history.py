"""Which settings a step of a run had: kept on a resume, found again, dropped where a resume does steps again."""

import logging
from pathlib import Path
from typing import Any

import pytest

from rsbdali.errors import RsbdaliError
from rsbdali.recipe import Recipe
from rsbdali.runs.args_history import Position, keep_earlier, position_of, read_history, settings_at
from rsbdali.runs.folder import RunFolder

A3 = Recipe.load("a3")
FACTS: dict[str, Any] = {"data": "/d", "decode": "cpu", "train_images": 100, "steps_per_epoch": 4}


def begin(
    folder: Path, position: Position, recipe: Recipe, facts: dict[str, Any] = FACTS, source: Path | None = None
) -> None:
    """What training does when it begins, or goes on at a position."""
    keep_earlier(folder, position, recipe, facts, source=source)
    RunFolder(folder).write_args(recipe, facts)


def with_lr(lr: float) -> Recipe:
    return A3.with_overrides({"lr": lr})


def rates(folder: Path) -> list[tuple[Position | None, float]]:
    return [(each.until, each.recipe["lr"]) for each in read_history(folder)]


def test_no_run_has_no_settings(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []


def test_settings_are_kept_where_they_change(tmp_path: Path) -> None:
    begin(tmp_path, (0, 0), with_lr(1))
    begin(tmp_path, (1, 0), with_lr(1))
    assert rates(tmp_path) == [(None, 1)]
    begin(tmp_path, (2, 3), with_lr(2))
    begin(tmp_path, (10, 0), with_lr(2))
    begin(tmp_path, (12, 0), with_lr(3))
    assert rates(tmp_path) == [((2, 3), 1), ((12, 0), 2), (None, 3)]
    history = read_history(tmp_path)
    found = [settings_at(history, place).recipe["lr"] for place in ((0, 0), (2, 2), (2, 3), (11, 3), (12, 0), (99, 0))]
    assert found == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("position", "lr", "kept"),
    [
        ((5, 0), 4, [((2, 0), 1), ((5, 0), 2), (None, 4)]),  # within the second part
        ((5, 0), 2, [((2, 0), 1), (None, 2)]),
        ((6, 0), 3, [((2, 0), 1), ((6, 0), 2), (None, 3)]),  # at its end
        ((2, 0), 1, [(None, 1)]),
        ((1, 0), 4, [((1, 0), 1), (None, 4)]),
        ((1, 0), 1, [(None, 1)]),
        ((0, 0), 4, [(None, 4)]),  # a run begins anew
        ((8, 0), 3, [((2, 0), 1), ((6, 0), 2), (None, 3)]),
    ],
)
def test_what_is_done_again_has_the_settings_of_the_resume(
    position: Position, lr: float, kept: list[tuple[Position | None, float]], tmp_path: Path
) -> None:
    for place, rate in (((0, 0), 1), ((2, 0), 2), ((6, 0), 3)):
        begin(tmp_path, place, with_lr(rate))
    begin(tmp_path, position, with_lr(lr))
    assert rates(tmp_path) == kept


def test_a_run_that_goes_on_in_another_folder_takes_its_history_along(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    begin(old, (0, 0), with_lr(1))
    begin(old, (2, 0), with_lr(2))
    begin(new, (5, 0), with_lr(3), source=old)
    assert rates(new) == [((2, 0), 1), ((5, 0), 2), (None, 3)]
    assert rates(old) == [((2, 0), 1), (None, 2)]


@pytest.mark.parametrize(("key", "is_kept"), [("data", False), ("decode", True), ("train_images", True)])
def test_facts_count_where_they_change_batches(key: str, is_kept: bool, tmp_path: Path) -> None:
    begin(tmp_path, (0, 0), A3)
    begin(tmp_path, (1, 0), A3, {**FACTS, key: "other"})
    assert (len(read_history(tmp_path)) == 2) is is_kept


def test_a_step_of_the_whole_run_is_found_where_epochs_differ_in_length(tmp_path: Path) -> None:
    for place, steps in (((0, 0), 4), ((2, 0), 3), ((4, 2), 3), ((5, 0), 1)):
        begin(tmp_path, place, with_lr(1 + sum(place)), {**FACTS, "steps_per_epoch": steps})
    history = read_history(tmp_path)
    places = [(epoch, step) for epoch, steps in enumerate([4, 4, 3, 3, 3, 1, 1]) for step in range(steps)]
    assert [position_of(history, count) for count in range(len(places))] == places
    assert position_of(history, 10**15) == (10**15 - 17 + 5, 0)


def test_an_unknown_length_is_asked_for(tmp_path: Path) -> None:
    begin(tmp_path, (0, 0), with_lr(1), {"data": "/d"})
    begin(tmp_path, (2, 0), with_lr(2))
    with pytest.raises(RsbdaliError, match=r"args-until-2-0\.yaml does not say how many steps .*--epoch"):
        position_of(read_history(tmp_path), 3)


def test_damaged_settings_do_not_stop_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begin(tmp_path, (0, 0), with_lr(1))
    begin(tmp_path, (2, 0), with_lr(2))
    file = tmp_path / "args-until-2-0.yaml"
    file.write_bytes(b"\xff")
    with pytest.raises(RsbdaliError, match=f"{file} is no UTF-8"):
        read_history(tmp_path)
    with caplog.at_level(logging.WARNING, "rsbdali"):
        begin(tmp_path, (4, 0), with_lr(3))
    assert "is no UTF-8 (invalid start byte at byte 0): settings of earlier steps are lost" in caplog.text
    assert rates(tmp_path) == [((4, 0), 2), (None, 3)]


def test_other_files_of_like_names_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "args-until-tomorrow.yaml"
    other.write_text("mine")
    begin(tmp_path, (0, 0), A3)
    assert len(read_history(tmp_path)) == 1
    assert other.read_text() == "mine"
