"""A run that was stopped, or killed after a save, and resumed is the run that was never stopped: bitwise, on a CPU."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.records import record
from helpers.scripts import script
from rsbdali.data.index import ImageIndex
from rsbdali.errors import CheckpointError, RsbdaliError
from rsbdali.loader.train import TrainLoader
from rsbdali.recipe import Recipe
from rsbdali.runs import checkpoint
from rsbdali.runs.checkpoint_record import OURS
from rsbdali.runs.find_checkpoint import newest_valid
from rsbdali.runs.folder import LAST
from rsbdali.training.save_interval import Due, Interval

TIMINGS = {"seconds", "images_per_s", "wait_share"}
STEPS = 3
VALUES = {"model_ema": True, "model_ema_decay": 0.9, "drop": 0.2, "mix_groups": 2}


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and value of a checkpoint but for the timings, by its path."""
    if isinstance(value, dict | list | tuple):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in TIMINGS:
                yield from leaves(entry, f"{name}/{key}")
    else:
        yield name, value


def assert_same_checkpoint(one: Path, two: Path) -> None:
    found = [dict(leaves(torch.load(folder / LAST, weights_only=True))) for folder in (one, two)]
    assert found[0].keys() == found[1].keys()
    assert sum(isinstance(value, torch.Tensor) for value in found[0].values()) > 50
    for name, value in found[0].items():
        other = found[1][name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


def records(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def assert_same_run(one: Path, two: Path) -> None:
    assert_same_checkpoint(one, two)
    assert records(one) == records(two)
    assert (one / "summary.csv").read_text() == (two / "summary.csv").read_text()
    names = [sorted(path.name for path in folder.glob("*.pth.tar")) for folder in (one, two)]
    assert names[0] == names[1]


def position(folder: Path) -> tuple[int, int]:
    place = torch.load(folder / LAST, weights_only=True)["rsbdali"]["position"]
    return place["epoch"], place["step"]


def test_resume_after_a_signal_at_any_step_is_bitwise_the_uninterrupted_run(
    toy: Callable[..., Any], tmp_path: Path
) -> None:
    whole = toy("whole", STEPS, **VALUES)
    whole.go()
    for epoch, step in [(0, 0), (0, 2), (1, 0), (1, 1)]:
        name = f"cut-{epoch}-{step}"
        first = toy(name, STEPS, **VALUES)
        first.loader.before = lambda *at, stop=(epoch, step): at == stop and os.kill(os.getpid(), signal.SIGTERM)
        assert first.go().signal is signal.SIGTERM
        # the step that the signal came in is finished, and one more, as far as there is one, before it is heard of
        assert position(tmp_path / name) == (epoch, min(STEPS, step + 2))
        second = toy(name, STEPS, **VALUES)
        assert replace(second.go(), updates=0) == whole.trainer.run()  # that one had no step left to do
        assert first.loader.seen + second.loader.seen == whole.loader.seen  # no batch twice, none left out
        assert_same_run(tmp_path / "whole", tmp_path / name)


def test_resume_of_drop_path(toy: Callable[..., Any], tmp_path: Path) -> None:
    """Nothing random is stored: torch's generators are seeded by (seed, epoch, step, group) before each pass."""
    values = {"epochs": 1, "model": "test_convnext", "drop_path": 0.3}
    toy("whole", STEPS, **values).go()
    first = toy("cut", STEPS, **values)
    first.loader.before = lambda *at: at == (0, 0) and os.kill(os.getpid(), signal.SIGUSR1)
    first.go()
    torch.manual_seed(99)
    toy("cut", STEPS, **values).go()
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


class Killed(BaseException):
    """Ends a run as SIGKILL would: nothing more is saved."""


def test_resume_from_a_save_between_epochs_repeats_no_row(toy: Callable[..., Any], tmp_path: Path) -> None:
    toy("whole", STEPS, **VALUES).go()

    def die(*at: int) -> None:
        if at == (1, 2):
            raise Killed

    first = toy("cut", STEPS, more={"checkpoint_every": "2steps"}, **VALUES)
    first.loader.before = die
    with pytest.raises(Killed):
        first.go()
    # steps 2 and 4 of the run were saved, and the end of the first epoch (3); then a fifth step was made and logged
    assert position(tmp_path / "cut") == (1, 1)
    assert [r["step"] for r in records(tmp_path / "cut") if r["kind"] == "step"] == [1, 2, 3, 1, 2]
    again = toy("cut", STEPS, more={"checkpoint_every": "2steps"}, **VALUES)
    assert [r.get("step") for r in records(tmp_path / "cut")] == [1, 2, 3, None, 1]
    again.go()
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_resume_from_saves_by_the_clock(
    toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count()
    monkeypatch.setattr("rsbdali.training.save_interval.time", SimpleNamespace(monotonic=lambda: next(clock)))
    saved = []
    toy("whole", 9, epochs=1).go()
    run = toy("often", 9, more={"checkpoint_every": "3s"}, epochs=1)
    save = run.trainer.saver.save_last
    run.trainer.saver.save_last = lambda content: (saved.append(content["rsbdali"]["position"]["step"]), save(content))
    run.go()
    assert saved == [4, 8]  # due at the third look, sent in the step's sum and read one step later
    assert_same_run(tmp_path / "whole", tmp_path / "often")


def test_resume_interval() -> None:
    assert Interval.parse("500steps") == Interval(steps=500)
    assert Interval.parse("1 step") == Interval(steps=1)
    assert [Interval.parse(text).seconds for text in ("90s", "10m", "2h")] == [90, 600, 7200]
    for text in ("10", "m", "0m", "0steps", "1.5h", "-3s", "10 minutes", ""):
        with pytest.raises(RsbdaliError, match=r"--checkpoint-every .*: expected .* 500steps, 90s, 10m or 2h"):
            Interval.parse(text)
    never, by_steps = Due(None), Due(Interval(steps=3))
    assert [never.by_time(), never.by_steps(3), by_steps.by_time()] == [False] * 3
    assert [by_steps.by_steps(update) for update in range(1, 7)] == [False, False, True, False, False, True]


def numbered(path: Path, epoch: int, step: int = 0) -> Path:
    checkpoint.write({"state_dict": {"a": torch.ones(999)}, OURS: record(epoch, step)}, path)
    return path


def rot(path: Path) -> None:
    """Change one byte of a tensor: the file stays readable to torch."""
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(4).numpy().tobytes()) + 3] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


@pytest.mark.parametrize("spoil", [rot, truncate, lambda path: path.write_bytes(b"")], ids=["rot", "cut", "empty"])
def test_resume_auto_takes_the_newest_that_is_whole(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    assert newest_valid(tmp_path) == (None, [])
    last = numbered(tmp_path / LAST, 9, 4)
    others = {epoch: numbered(tmp_path / f"checkpoint-{epoch - 1}.pth.tar", epoch) for epoch in (8, 9, 10)}
    best = numbered(tmp_path / "model_best.pth.tar", 9)
    others[10].unlink()
    assert newest_valid(tmp_path) == (last, [])
    spoil(last)
    found, wrong = newest_valid(tmp_path)
    assert found in (others[9], best)
    assert [str(last) in text for text in wrong] == [True]
    spoil(others[9])
    found, wrong = newest_valid(tmp_path)
    assert found == best
    assert len(wrong) == 2
    spoil(best)
    assert newest_valid(tmp_path)[0] == others[8]
    spoil(others[8])
    found, wrong = newest_valid(tmp_path)
    assert found is None
    assert len(wrong) == 4


def test_resume_auto_names_what_it_passes_over(
    toy: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    toy("whole", 1, epochs=2).go()
    toy("run", 1, epochs=2).go()
    (tmp_path / "run" / LAST).unlink()  # its other names keep the file
    (tmp_path / "run" / LAST).write_bytes(b"rotten")
    (tmp_path / "run/checkpoint-1.pth.tar").unlink()
    for path in (tmp_path / "run").glob("*.pth.tar"):
        if path.name != "checkpoint-0.pth.tar":
            path.unlink()
            path.write_bytes(b"rotten")
    run = toy("run", 1, epochs=2)
    assert "last.pth.tar is truncated, damaged or no checkpoint: passed over" in caplog.text
    assert "checkpoint-0.pth.tar is the newest valid one" in caplog.text
    assert run.state.epoch == 1
    run.go()
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    for path in (tmp_path / "run").glob("*.pth.tar"):
        path.write_bytes(b"rotten")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*run is valid, and a run does not begin over them"):
        toy("run", 1, epochs=2)


def test_resume_with_other_numbers_of_ranks_makes_the_same_plans(image_tree: Callable[..., Path]) -> None:
    index = ImageIndex.load(image_tree(classes=2, per_class=12))
    recipe = Recipe.load("a3", {"img_size": 32, "global_batch_size": 8, "mix_groups": 4, "seed": 5})
    plans: dict[int, dict[int, list[Any]]] = {}
    for size in (1, 2, 3, 4):
        plans[size] = {}
        for rank in range(size):
            loader = TrainLoader(index, recipe, rank=rank, world_size=size, device="cpu", num_threads=1)
            loader.seek(1, 2)
            for batch in loader:
                assert batch.step == 2
                plans[size][batch.group] = [v.tolist() for k, v in vars(batch.plan).items() if "_N" in k]
            loader.close()
    assert plans[1] == plans[2] == plans[3] == plans[4]
    assert sorted(plans[1]) == [0, 1, 2, 3]


def test_resume_with_two_ranks_of_a_run_of_one(toy: Callable[..., Any], tmp_path: Path) -> None:
    values = {"epochs": 1, "mix_groups": 2, "opt": "sgd", "lr": 0.1}
    whole = toy("whole", 4, **values)
    whole.go()
    first = toy("cut", 4, **values)
    first.loader.before = lambda *at: at == (0, 0) and os.kill(os.getpid(), signal.SIGTERM)
    first.go()
    assert position(tmp_path / "cut") == (0, 2)
    (tmp_path / "cut").rename(tmp_path / "toy")
    script("forked_ranks", tmp_path, 4, 2, "toy")
    assert position(tmp_path / "toy") == (1, 0)
    alone, shared = (torch.load(tmp_path / name / LAST, weights_only=True) for name in ("whole", "toy"))
    for name, value in alone["state_dict"].items():
        if "running" not in name and "num_batches" not in name:  # each rank has seen half of the groups
            # gradients are summed in another order
            torch.testing.assert_close(shared["state_dict"][name], value, rtol=1e-4, atol=1e-6, msg=name)
    losses = [[r["train_loss"] for r in records(tmp_path / name) if r["kind"] == "epoch"] for name in ("whole", "toy")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # as above


SMALL = (
    "model=test_resnet img_size=32 test_img_size=32 epochs=4 global_batch_size=4 mix_groups=2 warmup_epochs=0 "
    "log_interval=1 model_ema=true amp_dtype=float32"
)


def start(data: Path, output: Path, name: str, *more: str) -> "subprocess.Popen[str]":
    overrides = [word for pair in SMALL.split() for word in ("--set", pair)]
    command = ["train", "--data", data, "--device", "cpu", "--workers", "1", "--output", output, "--experiment", name]
    command = [sys.executable, "-m", "rsbdali", *map(str, command), *overrides, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def test_resume_of_a_command_stopped_by_sigterm_at_a_random_step(
    image_tree: Callable[..., Path], tmp_path: Path
) -> None:
    image_tree(classes=3, per_class=2, split="val", seed=1)
    data = image_tree(classes=3, per_class=12).parent
    whole = start(data, tmp_path, "whole")
    cut = start(data, tmp_path, "cut", "--checkpoint-every", "2steps")
    assert cut.stdout is not None
    steps = (line for line in cut.stdout if " step " in line)  # none for the last step of an epoch
    assert sum(1 for _ in islice(steps, random.Random(os.urandom(8)).randrange(1, 24))) > 0
    cut.send_signal(signal.SIGTERM)
    said = cut.communicate(timeout=300)[0]
    assert cut.returncode == 143, said
    assert "stopped by SIGTERM in epoch" in said
    assert position(tmp_path / "cut") < (4, 0)
    resumed = start(data, tmp_path, "cut", "--resume", "auto")
    said = resumed.communicate(timeout=300)[0]
    assert resumed.returncode == 0, said
    assert "Goes on from" in said
    assert whole.communicate(timeout=300)[0]
    assert whole.returncode == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
