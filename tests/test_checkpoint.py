"""Checkpoint files: read safely, written whole or not at all, and the right ones kept."""

import os
import pickle
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch

from helpers import fakes
from helpers.common import CPU
from rsbdali.errors import CheckpointError
from rsbdali.recipe import Recipe
from rsbdali.runs import checkpoint
from rsbdali.runs.checkpoint_manager import CheckpointManager
from rsbdali.runs.state import Identity, RunState
from rsbdali.training.train import make_state


def stepped(recipe: Recipe, classes: int) -> RunState:
    """A state whose optimizer has something to remember."""
    state = make_state(recipe, classes, CPU)
    state.model(torch.randn(2, 3, 32, 32)).sum().backward()
    state.optimizer.step()
    state.epoch, state.step, state.updates = 1, 2, 5
    state.best_top1, state.best_epoch, state.history = 70.0, 0, {"checkpoint-0.pth.tar": 70.0}
    if state.ema is not None:
        state.ema.update(state.model)
    return state


def identity(recipe: Recipe, classes: int = 4, groups: int = 2, steps: int = 3) -> Identity:
    return Identity(recipe, tuple(f"class{i}" for i in range(classes)), groups, steps)


@pytest.fixture
def recipe() -> Recipe:
    return fakes.recipe(model_ema=True)


@pytest.fixture
def saved(tmp_path: Path, recipe: Recipe) -> Path:
    path = tmp_path / "last.pth.tar"
    checkpoint.write(stepped(recipe, 4).to_checkpoint(identity(recipe), 70.0), path)
    return path


def test_timm_loads_it(saved: Path, recipe: Recipe) -> None:
    model = timm.create_model(recipe.model, num_classes=4, checkpoint_path=str(saved))
    content = torch.load(saved, weights_only=True)
    assert torch.equal(model.fc.weight, content["state_dict_ema"]["fc.weight"])
    assert {"epoch", "arch", "state_dict", "optimizer", "version", "args", "metric", "state_dict_ema"} <= content.keys()
    assert content["epoch"] == 0  # the last one completed, as timm counts from version 2 on
    assert content["arch"] == "test_resnet"
    assert content["rsbdali"]["versions"]["timm"] == timm.__version__
    assert Recipe.from_dict(content["rsbdali"]["recipe"]) == recipe


def test_everything_comes_back(saved: Path, recipe: Recipe) -> None:
    before, after = stepped(recipe, 4), make_state(recipe, 4, CPU)
    content = checkpoint.read(saved)
    after.restore(content, identity(recipe), saved)
    assert (after.epoch, after.step, after.updates, after.best_top1, after.best_epoch) == (1, 2, 5, 70.0, 0)
    assert after.history == before.history
    again = after.to_checkpoint(identity(recipe), 70.0)
    for part in ("state_dict", "state_dict_ema"):
        for name, value in content[part].items():
            assert torch.equal(again[part][name], value), name
    for key, entry in content["optimizer"]["state"].items():
        for name, value in entry.items():
            assert torch.equal(again["optimizer"]["state"][key][name], value)


BEFORE = {"images": 40, "digest": "forty", "pixels": "the host executor"}


@pytest.mark.parametrize("step", [0, 2, 3])
def test_other_images_are_refused_within_an_epoch_and_said_between(
    tmp_path: Path, recipe: Recipe, caplog: pytest.LogCaptureFixture, step: int
) -> None:
    state = stepped(recipe, 4)
    state.step = step

    def resume(before: dict[str, Any], now: dict[str, Any]) -> str:
        content = state.to_checkpoint(replace(identity(recipe), **before), None)
        if not before:  # as earlier versions wrote it
            del content["rsbdali"]["data"], content["rsbdali"]["pixels"]
        caplog.clear()
        make_state(recipe, 4, CPU).restore(content, replace(identity(recipe), **now), tmp_path / "last")
        return caplog.text

    assert resume(BEFORE, BEFORE) == resume({}, BEFORE) == ""
    assert "from the graph, and came from the host executor" in resume(BEFORE, {**BEFORE, "pixels": "the graph"})
    other = {**BEFORE, "images": 43, "digest": "forty-three"}
    if step == 2:
        with pytest.raises(
            CheckpointError, match=r"last is in the middle of epoch 2, .*40 then, 43 now.*checkpoint-\*"
        ):
            resume(BEFORE, other)
    else:  # before the first step, or behind the last of three
        assert "goes on with a training set of other images than before: 40 then, 43 now" in resume(BEFORE, other)


def test_wrappers_leave_no_prefix() -> None:
    state = {"_orig_mod.module.a": 1, "module._orig_mod.b": 2, "c.module.d": 3}
    assert checkpoint.clean(state) == {"a": 1, "b": 2, "c.module.d": 3}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_file(saved: Path, share: float) -> None:
    saved.write_bytes(saved.read_bytes()[: int(share * saved.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"last\.pth\.tar is truncated, damaged or no checkpoint"):
        checkpoint.read(saved)


def test_missing_file_and_text_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.read(tmp_path / "none")
    (tmp_path / "text").write_text("hello\nworld\n")
    with pytest.raises(CheckpointError, match="truncated, damaged or no checkpoint"):
        checkpoint.read(tmp_path / "text")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")  # torch's, of a damaged byte
@pytest.mark.parametrize("as_zip", [True, False])
def test_damaged_bytes_are_one_error(tmp_path: Path, as_zip: bool) -> None:
    content = {"state_dict": {"a": torch.ones(3)}, "args": [1, 2.0, "x", None, True]}
    torch.save(content, tmp_path / "good", _use_new_zipfile_serialization=as_zip)
    good, rng = (tmp_path / "good").read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(good)
        for place in rng.integers(min(len(good), 600), size=3):
            damaged[place] = rng.integers(256)
        (tmp_path / "bad").write_bytes(damaged)
        try:
            checkpoint.read(tmp_path / "bad")
        except CheckpointError:
            refused += 1
    assert refused > 100


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("as_zip", [True, False])
def test_hostile_pickle_is_refused_and_not_run(tmp_path: Path, as_zip: bool) -> None:
    path, target = tmp_path / "bomb.pth", tmp_path / "blown"
    if as_zip:
        torch.save({"state_dict": Bomb(target)}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Bomb(target)}, protocol=2))
    with pytest.raises(CheckpointError, match="mkdir" if as_zip else "no checkpoint"):
        checkpoint.read(path)
    assert not target.exists()


def test_other_contents(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(CheckpointError, match="holds a list"):
        checkpoint.read(tmp_path / "list")
    with pytest.raises(CheckpointError, match="no model weights"):
        checkpoint.weights({"state_dict": {"a": "text"}})


def test_a_run_does_not_go_on_from_what_does_not_fit(saved: Path, recipe: Recipe) -> None:
    content = checkpoint.read(saved)

    def refuse(chosen: Recipe, match: str, classes: int = 4, groups: int = 2, steps: int = 3) -> None:
        with pytest.raises(CheckpointError, match=match):
            make_state(chosen, classes, CPU).restore(content, identity(chosen, classes, groups, steps), saved)

    refuse(fakes.recipe(model="test_efficientnet"), "cannot be resumed with model test_resnet → test_efficientnet: set")
    refuse(recipe, r"is of other classes \(4 there, 5 here\)", classes=5)
    refuse(recipe, "mix_groups 2 → 8: set mix_groups=2 and use no more processes than that", groups=8)
    refuse(recipe, "middle of an epoch of 3 steps", steps=4)
    refuse(fakes.recipe(opt="sgd"), "cannot be resumed with opt lamb → sgd: set opt=lamb, or start a new run")
    with pytest.raises(CheckpointError, match="not of rsbdali train: use --initial-checkpoint"):
        make_state(recipe, 4, CPU).restore({"state_dict": content["state_dict"]}, identity(recipe), saved)


def test_changed_settings_are_logged(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    changed = fakes.recipe(model_ema=True, epochs=5, log_interval=9)
    make_state(changed, 4, CPU).restore(checkpoint.read(saved), identity(changed), saved)
    assert "goes on with other settings: epochs 2 → 5 (acts at once), log_interval 1 → 9 (acts at once)" in caplog.text


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pth.tar"
    checkpoint.write({"a": 1}, path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        checkpoint.write({"a": lambda: None}, path)
    assert checkpoint.read(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["last.pth.tar"]


def test_link_falls_back_to_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: object, target: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    checkpoint.link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "new"


def test_bytes_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace, no_links = os.fsync, Path.replace, os.link

    def note_fsync(descriptor: int) -> None:
        done.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def note_replace(path: Path, target: Path) -> Path:
        done.append(f"rename {path.name} {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    checkpoint.write({"a": torch.ones(9)}, tmp_path / "last")
    temporary = f".last.{os.getpid()}.tmp"
    in_order = [f"fsync {temporary}", f"rename {temporary} last", f"fsync {tmp_path.name}"]
    assert done == in_order
    assert no_links is os.link
    checkpoint.link(tmp_path / "last", tmp_path / "best")
    assert done[3:] == [f"rename .best.{os.getpid()}.tmp best", f"fsync {tmp_path.name}"]  # the same file
    monkeypatch.setattr(os, "link", Mock(side_effect=OSError("no hard links here")))
    del done[:]
    checkpoint.link(tmp_path / "best", tmp_path / "last")
    assert done == in_order


def test_a_step_waits_for_the_copy_alone_and_does_not_touch_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, written = threading.Event(), []

    def write(content: dict[str, torch.Tensor], path: Path) -> None:
        assert may_write.wait(60)
        written.append((content["a"].clone(), threading.current_thread() is threading.main_thread()))

    monkeypatch.setattr("rsbdali.runs.checkpoint_manager.write", write)
    weights = torch.ones(9)
    with CheckpointManager(tmp_path, 2) as saver:
        saver.save_last({"a": weights})  # returns, though nothing is written yet
        saver.check()
        weights += 1
        assert not written
        may_write.set()
    assert [(value.tolist(), is_main) for value, is_main in written] == [([1.0] * 9, False)]


def test_a_snapshot_shares_nothing_and_keeps_the_memory_format() -> None:
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    content = {"state": {0: {"step": torch.ones(())}}, "groups": [{"betas": (0.9, 0.99)}], "weight": weight}
    copy = checkpoint.snapshot(content)
    assert torch.equal(copy["weight"], weight)
    assert copy["weight"].is_contiguous(memory_format=torch.channels_last)
    weight.zero_()
    content["state"][0]["step"] += 1
    content["groups"][0]["betas"] = (0.0, 0.0)
    assert copy["weight"].abs().sum() > 0
    assert copy["state"][0]["step"] == 1
    assert copy["groups"] == [{"betas": (0.9, 0.99)}]


def test_what_goes_wrong_in_the_background_is_raised_by_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsbdali.runs.checkpoint.torch.save", Mock(side_effect=OSError(28, "No space left on device")))
    saver = CheckpointManager(tmp_path, 2)
    saver.save_last({"a": 1})
    with pytest.raises(CheckpointError, match=r"cannot save .*last\.pth\.tar \(No space left on device\)"):
        saver.save_last({"a": 2})
    saver.wait()  # reported once


def test_last_gets_its_name_last_and_leftovers_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: names.append(target.name) or replace(path, target))
    (tmp_path / ".last.pth.tar.1234.tmp").touch()
    (tmp_path / ".mine.tmp").touch()
    with CheckpointManager(tmp_path, 1) as saver:
        assert [path.name for path in tmp_path.iterdir()] == [".mine.tmp"]
        saver.save_epoch({"epoch": 0}, 0, 1.0, is_best=True)
        saver.save_epoch({"epoch": 1}, 1, 0.5, is_best=False)
    assert names == ["checkpoint-0.pth.tar", "model_best.pth.tar", "last.pth.tar", "last.pth.tar"]


def test_the_best_k_stay(tmp_path: Path) -> None:
    saver, best = CheckpointManager(tmp_path, keep=2), -1.0
    with saver:
        for epoch, metric in enumerate([10.0, 30.0, 20.0, 30.0, 5.0]):
            saver.save_epoch({"epoch": epoch}, epoch, metric, is_best=metric > best)
            best = max(best, metric)
    names = {path.name: checkpoint.read(path)["epoch"] for path in tmp_path.iterdir()}
    assert names == {
        "last.pth.tar": 4,
        "model_best.pth.tar": 1,
        "checkpoint-1.pth.tar": 1,
        "checkpoint-3.pth.tar": 3,
    }
    # a run that goes on remembers those that are still there
    (tmp_path / "checkpoint-3.pth.tar").unlink()
    assert CheckpointManager(tmp_path, keep=2, history=saver.history).history == {"checkpoint-1.pth.tar": 30.0}


@pytest.mark.parametrize(
    "name",
    [
        "/etc/x",
        "../checkpoint-1.pth.tar",
        "a/checkpoint-1.pth.tar",
        "model_best.pth.tar",
        "checkpoint-1.pth.tar\n",
        "",
        "victim.txt",
    ],
)
def test_a_checkpoint_deletes_no_file_but_a_runs_own(saved: Path, recipe: Recipe, name: str) -> None:
    content = checkpoint.read(saved)
    content["rsbdali"]["history"] = {name: 1e9}
    state = make_state(recipe, 4, CPU)
    with pytest.raises(
        CheckpointError, match=r"damaged: rsbdali\.history is .* expected names of checkpoints of the run"
    ):
        state.restore(content, identity(recipe), saved)
    assert state.history == {}


SPARSE = torch.zeros(timm.create_model("test_resnet", num_classes=4).fc.weight.shape).to_sparse()


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("rsbdali", "position"), {"epoch": 1}, "it holds no rsbdali.position.step"),
        (("rsbdali", "position", "epoch"), "1", "rsbdali.position.epoch is '1', expected a whole number"),
        (("rsbdali", "position", "step"), 9, "step 9 of an epoch of 3 steps"),
        pytest.param(("rsbdali", "updates"), 10**5000, "rsbdali.updates is a very long int", id="updates-long"),
        (("rsbdali", "class_names"), 5, "rsbdali.class_names is 5, expected a list of names"),
        (("rsbdali", "recipe", "lr"), torch.ones(2), "rsbdali.recipe is "),
        (("rsbdali", "best", "top1"), "x", "rsbdali.best.top1 is 'x'"),
        (("optimizer",), [], "its optimizer has no groups with lr and weight_decay"),
        (("optimizer", "param_groups", 0, "lr"), None, "its optimizer has no groups"),
        (
            ("optimizer", "param_groups", 0, "step"),
            "x",
            "optimizer state does not fit",
        ),
        (("optimizer", "state", 0, "exp_avg"), torch.ones(1), "(exp_avg torch.Size([1]) for a weight torch.Size("),
        (("optimizer", "state"), {"x": {}}, "(an entry belongs to no weight)"),
        (("optimizer", "state"), 7, "optimizer state does not fit"),
        (("state_dict", "fc.weight"), SPARSE, "weights cannot be taken"),
        (("state_dict_ema",), {1: torch.ones(1)}, "holds no model weights"),
    ],
)
def test_a_damaged_record_is_one_line(
    saved: Path, recipe: Recipe, place: tuple[object, ...], value: object, said: str
) -> None:
    content = checkpoint.read(saved)
    holder: Any = content
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    with pytest.raises(CheckpointError) as caught:
        make_state(recipe, 4, CPU).restore(content, identity(recipe), saved)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_file_that_unfolds_is_refused(saved: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(saved) as good, zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in good.namelist():
            bomb.writestr(name, good.read(name))
        bomb.writestr("archive/data/zeros", b"0" * (64 << 20))
    assert (tmp_path / "bomb").stat().st_size < 5 << 20
    for read in (checkpoint.read, checkpoint.read_verified):
        with pytest.raises(CheckpointError, match="an archive with compressed or overlapping members"):
            read(tmp_path / "bomb")


def test_weights_of_old_files_and_of_averaged_models() -> None:
    source = timm.create_model("test_resnet", num_classes=4)
    for buffer in source.buffers():
        if buffer.dtype == torch.int64:
            buffer.fill_(7)
    state = source.state_dict()
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    swa = torch.optim.swa_utils.AveragedModel(source).state_dict()
    assert "n_averaged" in swa
    for content, steps in (
        (old, 0),
        ({"model_ema": swa, "model": {}, "epoch": 3}, 7),  # torchvision's references
        ({"state_dict": {f"module.{name}": value for name, value in swa.items()}}, 7),  # the same in DDP
        ({"model": {f"_orig_mod.{name}": value for name, value in swa.items()}}, 7),
    ):
        model = timm.create_model("test_resnet", num_classes=4)
        checkpoint.load_weights(model, checkpoint.weights(content), "x")
        loaded = model.state_dict()
        for name, value in old.items():
            assert torch.equal(loaded[name], value), name
        assert {int(loaded[name]) for name in state.keys() - old.keys()} == {steps}
        assert timm.create_model("test_resnet", num_classes=4).load_state_dict(
            checkpoint.weights(content)
        )  # torch's own


def test_a_weight_with_and_without_a_prefix_is_refused() -> None:
    with pytest.raises(CheckpointError, match="holds a with and without a prefix"):
        checkpoint.weights({"a": torch.ones(1), "module.a": torch.zeros(1)})
