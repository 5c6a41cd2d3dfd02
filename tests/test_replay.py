"""Replay shows exactly the batch that training had: the same pixels bit for bit, the same names, a picture of them."""

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from helpers.common import TINY
from rsbdali.cli.main import cli
from rsbdali.data.index import ImageIndex
from rsbdali.errors import DataError, RecipeError, RsbdaliError
from rsbdali.loader.batch import TrainBatch
from rsbdali.loader.train import TrainLoader
from rsbdali.ops.mix import mix_normalize
from rsbdali.recipe import Recipe
from rsbdali.tools.drawing import DRAWN, Layout
from rsbdali.tools.replay import Replay, ReplayOptions, replay
from rsbdali.training.options import TrainOptions
from rsbdali.training.train import train

VALUES = {
    **TINY,
    "epochs": 2,
    "global_batch_size": 8,
    "mix_groups": 2,
    "warmup_epochs": 0,
    "seed": 3,
    "amp_dtype": "float32",
}


@pytest.fixture
def trained(
    image_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, dict[tuple[int, int, int], TrainBatch]]:
    """A finished run's folder, and every batch it was trained on. One of its images does not decode."""
    seen = spy(monkeypatch)
    folder = train(options_of(image_tree, tmp_path)).folder
    monkeypatch.undo()
    return folder, seen


def options_of(image_tree: Callable[..., Path], tmp_path: Path, **values: Any) -> TrainOptions:
    image_tree(classes=3, per_class=2, split="val", seed=1)
    data = image_tree(classes=3, per_class=7).parent
    (data / "train/class1/6.JPEG").write_bytes((data / "train/class1/6.JPEG").read_bytes()[:300])
    recipe = Recipe.load("a3", {**VALUES, **values})
    return TrainOptions(recipe=recipe, data=data, output=tmp_path / "out", experiment="run", device="cpu", workers=1)


def spy(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int, int], TrainBatch]:
    """The batches of training loaders from now on, by epoch, step and group."""
    seen: dict[tuple[int, int, int], TrainBatch] = {}
    batches = TrainLoader.__iter__

    def spied(loader: TrainLoader) -> Iterator[TrainBatch]:
        for batch in batches(loader):
            seen[batch.epoch, batch.step, batch.group] = replace(batch, images=batch.images.clone())
            yield batch

    monkeypatch.setattr(TrainLoader, "__iter__", spied)
    return seen


def check(found: Replay, seen: dict[tuple[int, int, int], TrainBatch]) -> None:
    for batch in found.batches:
        trained = seen[found.epoch, found.step, batch.group]
        for name, value in vars(batch.plan).items():
            np.testing.assert_array_equal(value, getattr(trained.plan, name), err_msg=name)
        plan, recipe = batch.plan, found.recipe
        mix = plan.partner_N, plan.lam_N, plan.box_N4
        images = mix_normalize(batch.images.permute(0, 2, 3, 1).contiguous(), *mix, recipe.mean, recipe.std)
        assert torch.equal(images, trained.images)
    assert [batch.group for batch in found.batches] == [0, 1]


def test_replay_gives_the_pixels_of_training(trained: tuple[Path, dict[tuple[int, int, int], TrainBatch]]) -> None:
    folder, seen = trained
    steps = 1 + max(step for _, step, _ in seen)
    assert steps == 2
    for step in range(2 * steps):
        found = replay(ReplayOptions(run=folder, step=step))
        assert (found.epoch, found.step) == divmod(step, steps)
        check(found, seen)
    check(replay(ReplayOptions(run=folder, epoch=1, step=0)), seen)
    # the image that does not decode was replaced by the same one
    index = found.index
    names = {index.path(int(i)) for batch in seen.values() for i in batch.plan.sample_N}
    assert not any(name.endswith("class1/6.JPEG") for name in names)


def test_other_images_than_the_runs_are_refused(
    trained: tuple[Path, dict[tuple[int, int, int], TrainBatch]], tmp_path: Path
) -> None:
    """As many as before, one of them in another class."""
    folder, _ = trained
    moved = shutil.copytree(tmp_path / "data", tmp_path / "moved")
    found = replay(ReplayOptions(run=folder, step=0, data=moved))
    assert found.index.digest == ImageIndex.load(tmp_path / "data/train").digest
    (moved / "train/class0/0.JPEG").rename(moved / "train/class1/7.JPEG")
    with pytest.raises(DataError, match="has other images than in the run, by path, label and size"):
        replay(ReplayOptions(run=folder, step=0, data=moved))


def test_steps_before_a_resume_with_other_settings_are_shown_by_theirs(
    image_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epoch 1 has another batch and size than epochs 2 and 3, of which the second has another augmentation."""
    options = options_of(image_tree, tmp_path, epochs=1)
    changes: list[dict[str, Any]] = [
        {"epochs": 2, "global_batch_size": 4, "img_size": 24},
        {"epochs": 3, "global_batch_size": 4, "img_size": 24, "aa": "rand-m2-n1"},
    ]
    seen = spy(monkeypatch)
    folder = train(options).folder
    for changed in changes:
        train(replace(options, recipe=options.recipe.with_overrides(changed), resume="auto"))
    monkeypatch.undo()
    assert {path.name for path in folder.glob("args*")} == {"args.yaml", "args-until-1-0.yaml", "args-until-2-0.yaml"}
    assert [1 + max(step for e, step, _ in seen if e == epoch) for epoch in range(3)] == [2, 5, 5]
    places = sorted({(epoch, step) for epoch, step, _ in seen})
    for count, (epoch, step) in enumerate(places):
        for asked in ({"epoch": epoch, "step": step}, {"step": count}):
            found = replay(ReplayOptions(run=folder, **asked))
            assert (found.epoch, found.step) == (epoch, step)
            check(found, seen)
    assert found.recipe.aa == "rand-m2-n1"
    with pytest.raises(RecipeError, match="the run has no step 13: it has 3 epochs, there of 5 steps each"):
        replay(ReplayOptions(run=folder, step=12))
    # a resume from the end of the first epoch with its settings makes all of it one run again
    again = {"resume": str(folder / "checkpoint-0.pth.tar"), "recipe": options.recipe.with_overrides({"epochs": 1})}
    train(replace(options, **again))
    assert [path.name for path in folder.glob("args*")] == ["args.yaml"]


def test_data_that_moved_is_read_where_it_is_now(
    image_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(image_tree, tmp_path, epochs=1)
    seen = spy(monkeypatch)
    folder = train(options).folder
    moved = options.data.rename(tmp_path / "moved")
    recipe = options.recipe.with_overrides({"epochs": 2, "aa": "rand-m2-n1"})
    train(replace(options, recipe=recipe, data=moved, resume="auto"))
    monkeypatch.undo()
    assert (folder / "args-until-1-0.yaml").exists()
    check(replay(ReplayOptions(run=folder, epoch=0, step=1)), seen)
    check(replay(ReplayOptions(run=folder, epoch=1, step=1)), seen)


def test_replay_command_writes_names_and_a_picture(
    trained: tuple[Path, dict[tuple[int, int, int], TrainBatch]], tmp_path: Path
) -> None:
    folder, seen = trained
    result = CliRunner().invoke(cli, ["replay", "--run", str(folder), "--step", "4", "--images", "3"])
    assert result.exit_code == 0, result.output
    *lines, drawn, table = result.output.splitlines()
    picture = folder / "replay-epoch2-step2.png"
    assert drawn == f"picture {picture}"
    assert table == f"all 8 rows: {picture.with_suffix('.csv')}"
    with picture.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["row"]) for row in rows[:3]] == [("0", "0"), ("1", "0"), ("0", "1")]
    assert len(rows) == 8
    assert [line.split(":")[0] for line in lines] == ["group 0 row 0", "group 1 row 0", "group 0 row 1"]
    plan = seen[1, 1, 1].plan
    lines = replay(ReplayOptions(run=folder, step=3)).lines()
    index = replay(ReplayOptions(run=folder, step=3)).index
    y, x, h, w = plan.crop_N4[2].tolist()
    expected = f"group 1 row 2: {index.path(int(plan.sample_N[2]))}  crop {h} x {w} at ({y}, {x}), "
    line = next(line for line in lines if line.startswith("group 1 row 2"))
    assert line.startswith(expected)
    if plan.lam_N[2] < 1:
        assert line.endswith(f"lambda {plan.lam_N[2]:.2f} with {index.path(int(plan.sample_N[plan.partner_N[2]]))}")
    # the tile of the third picture row, drawn enlarged: group 0, row 1
    with Image.open(picture) as image:
        drawn_HWC = np.asarray(image)
    batch = replay(ReplayOptions(run=folder, step=3)).batches[0]
    layout = Layout.of_tiles(Recipe.load("a3", VALUES), 3, 2)
    x, y = layout.cell(2, 1)
    tile_HWC = drawn_HWC[y : y + layout.tile[0], x : x + layout.tile[1]]
    own = Image.fromarray(batch.images[1].permute(1, 2, 0).numpy()).resize(layout.tile[::-1], DRAWN)
    np.testing.assert_array_equal(tile_HWC, np.asarray(own))


def test_replay_mistakes_are_one_line(
    trained: tuple[Path, dict[tuple[int, int, int], TrainBatch]], tmp_path: Path
) -> None:
    folder, _ = trained
    mistakes: list[tuple[type[RsbdaliError], str, dict[str, Any]]] = [
        (RsbdaliError, "is no run's folder: it holds no args.yaml", {"run": tmp_path}),
        (RecipeError, "the run has no step 5: it has 2 epochs, there of 2 steps each", {"step": 4}),
        (RecipeError, "the run has no step 3 in epoch 1", {"epoch": 0, "step": 2}),
        (RecipeError, "the run has no step 1 in epoch 3", {"epoch": 2}),
        (DataError, "no such folder", {"data": tmp_path / "nowhere"}),
    ]
    for error, words, values in mistakes:
        with pytest.raises(error, match=words):
            replay(ReplayOptions(**{"run": folder, "step": 0, **values}))
    result = CliRunner().invoke(cli, ["replay", "--run", str(folder), "--step", "1", "--out", "a.jpg"])
    assert isinstance(result.exception, RecipeError)
    root = Path(replay(ReplayOptions(run=folder, step=0)).index.root)
    next(root.glob("class0/*")).unlink()
    with pytest.raises(DataError, match="has 20 images now and had 21 in the run"):
        replay(ReplayOptions(run=folder, step=0))


def test_replay_is_what_a_lost_loss_asks_for(trained: tuple[Path, dict[tuple[int, int, int], TrainBatch]]) -> None:
    """The file that a loss leaves which is not finite names the images that its replay shows."""
    folder, seen = trained
    recipe = Recipe.load("a3", VALUES).with_overrides({"lr": 1e30, "warmup_lr": 1e30, "opt": "sgd"})
    data = Path(replay(ReplayOptions(run=folder, step=0)).index.root).parent
    with pytest.raises(RecipeError, match="replay --run") as caught:
        train(TrainOptions(recipe=recipe, data=data, output=folder.parent, experiment="nan", device="cpu", workers=1))
    command = str(caught.value).split("`")[1].split()
    options = dict(zip(command[2::2], command[3::2], strict=True))
    epoch, step = int(options["--epoch"]) - 1, int(options["--step"]) - 1  # the command line counts from 1
    record = json.loads((folder.parent / f"nan/nan-{epoch}-{step}.json").read_text())
    found = replay(ReplayOptions(run=Path(options["--run"]), epoch=epoch, step=step))
    assert [group["samples"] for group in record["groups"]] == [b.plan.sample_N.tolist() for b in found.batches]
    assert record["groups"][0]["names"] == [found.index.path(i) for i in record["groups"][0]["samples"]]
    assert seen  # the first run's
