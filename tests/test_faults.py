"""What goes wrong on real machines, done for real: kills, full disks, bad and hostile files, losses that blow up."""

import csv
import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.common import TINY
from helpers.scripts import script
from rsbdali.data.index import ImageIndex
from rsbdali.data.splits import load_indexes
from rsbdali.errors import CheckpointError, RecipeError, RsbdaliError
from rsbdali.recipe import Recipe
from rsbdali.runs import checkpoint
from rsbdali.runs.checkpoint_manager import CheckpointManager
from rsbdali.runs.folder import LAST, RunFolder
from rsbdali.training.nonfinite import MAX_IN_A_ROW
from rsbdali.training.options import TrainOptions
from rsbdali.training.train import train

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # of linux/prctl.h and linux/capability.h


def test_faults_of_thirty_kills_while_saving_lose_no_complete_save(tmp_path: Path) -> None:
    found = json.loads(script("saves", "kills", tmp_path, 30, int.from_bytes(os.urandom(4))))
    assert found["completed"] >= 30
    assert found["in_midst"] > 0, "no kill hit a save: the test tests nothing"
    assert found["newest"] >= 30
    assert found["litter"] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def check_full(found: dict[str, Any], path: Path, reason: str) -> None:
    assert found["code"] == 2
    assert found["error"] == f"cannot save {path} ({reason}): what was saved before is still there"
    assert found["kept"] == 0
    assert found["files"] == [LAST]


def test_faults_of_a_full_disk(small_disk: Path) -> None:
    check_full(json.loads(script("saves", "full", small_disk, 0)), small_disk / LAST, "No space left on device")


def test_faults_of_a_file_over_its_limit(tmp_path: Path) -> None:
    check_full(json.loads(script("saves", "full", tmp_path, 700_000)), tmp_path / LAST, "File too large")


def test_faults_of_a_failed_save_end_the_run_in_one_line(
    toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy(steps=2, epochs=1).go()
    before = (tmp_path / "run" / LAST).read_bytes()
    run = toy(steps=2, epochs=3)

    def full(content: object, file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rsbdali.runs.checkpoint.torch.save", full)
    with pytest.raises(CheckpointError, match=r"cannot save .* \(No space left on device\)"):
        run.go()
    assert (run.state.epoch, run.state.step) != (3, 0)  # not only told at the end
    assert (tmp_path / "run" / LAST).read_bytes() == before


def test_faults_of_a_full_disk_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    os.symlink("/dev/full", tmp_path / "metrics.jsonl")
    with pytest.raises(RsbdaliError, match=r"cannot write .*metrics\.jsonl \(No space left on device\)"):
        folder.add_metrics({"kind": "step", "epoch": 0, "step": 1})


BLUNT = """
import io, pickle, sys, zipfile
archive = zipfile.ZipFile(sys.argv[1])
class Blunt(pickle.Unpickler):
    def persistent_load(self, key):
        return None
    def find_class(self, module, name):
        return (lambda *a: None) if module.startswith("torch") else super().find_class(module, name)
Blunt(io.BytesIO(archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl"))))).load()
"""


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_faults_of_a_hostile_checkpoint_in_a_process(tmp_path: Path) -> None:
    path, target = tmp_path / "bomb.pth.tar", tmp_path / "blown"
    torch.save({"arch": "test_resnet", "state_dict": {"a": torch.ones(1)}, "args": Bomb(target)}, path)
    code = f"from rsbdali.runs import checkpoint; checkpoint.read({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith("rsbdali.errors.CheckpointError")
    assert f"{path} holds more than plain data and was not loaded: it could run code (it wants posix.mkdir)" in last
    assert not target.exists()
    # the file is a real one: what reads it without care runs it
    done = subprocess.run([sys.executable, "-c", BLUNT, str(path)], capture_output=True, text=True, check=False)
    assert target.exists(), done.stderr


@pytest.mark.parametrize("resume", ["auto", LAST])
@pytest.mark.parametrize("kind", ["truncated", "of another model", "hostile"])
def test_faults_of_checkpoints_to_resume_from(toy: Callable[..., Any], tmp_path: Path, kind: str, resume: str) -> None:
    folder, target = tmp_path / "run", tmp_path / "blown"
    folder.mkdir()
    other = toy("other")
    content = other.state.to_checkpoint(other.trainer.identity, None)
    if kind == "hostile":
        content["args"] = Bomb(target)
    if kind == "of another model":
        content["state_dict"]["more"] = torch.ones(1)
    torch.save(content, folder / LAST)
    if kind == "truncated":
        (folder / LAST).write_bytes((folder / LAST).read_bytes()[:-100])
    words = {"truncated": "truncated", "of another model": "is of another model: it has besides more"}
    words["hostile"] = "holds more than plain data and was not loaded"
    with pytest.raises(CheckpointError, match=words[kind]) as caught:
        toy("run", more={"resume": "auto" if resume == "auto" else str(folder / LAST)})
    assert str(folder / LAST) in str(caught.value)
    assert not target.exists()


# images


@pytest.fixture
def data(image_tree: Callable[..., Path]) -> Path:
    image_tree(classes=3, per_class=2, split="val", seed=1)
    return image_tree(classes=3, per_class=4).parent


@pytest.fixture
def options(data: Path, tmp_path: Path) -> TrainOptions:
    values = {
        **TINY,
        "epochs": 2,
        "global_batch_size": 4,
        "mix_groups": 2,
        "warmup_epochs": 0,
        "amp_dtype": "float32",
    }
    return TrainOptions(recipe=Recipe.load("a3", values), data=data, output=tmp_path / "out", device="cpu", workers=1)


def test_faults_of_images_that_vanish_or_rot_after_the_index(
    options: TrainOptions, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def then_lose(*arguments: Any, **options: Any) -> tuple[ImageIndex, ImageIndex]:
        indexes = load_indexes(*arguments, **options)
        (data / "train/class0/1.JPEG").unlink()
        (data / "train/class1/2.JPEG").write_bytes(b"rotten" * 100)
        (data / "train/class2/0.JPEG").write_bytes(b"")
        (data / "val/class0/1.JPEG").unlink()
        return indexes

    monkeypatch.setattr("rsbdali.training.train.load_indexes", then_lose)
    summary = train(options)
    assert summary.outcome.epochs == 2
    assert summary.outcome.last is not None
    assert summary.outcome.last.n == 5  # what is gone is not evaluated, and not replaced either
    with (summary.folder / "bad_images.csv").open(newline="") as file:
        named = sorted(str(Path(row["path"]).relative_to(data)) for row in csv.DictReader(file))
    assert named == ["train/class0/1.JPEG", "train/class1/2.JPEG", "train/class2/0.JPEG", "val/class0/1.JPEG"]


def drop_the_right_to_write_everywhere() -> None:
    """Root may write into folders that nobody may write into; a process without this capability may not."""
    if os.geteuid() == 0:
        assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="drops a capability of Linux")
def test_faults_of_a_read_only_data_folder(data: Path, cache_home: Path) -> None:
    folders = [folder for folder in (data, *data.rglob("*")) if folder.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    try:
        code = f"open({str(data / 'x')!r}, 'w')"
        python = {"capture_output": True, "text": True, "preexec_fn": drop_the_right_to_write_everywhere}
        assert "Permission denied" in subprocess.run([sys.executable, "-c", code], check=False, **python).stderr
        before = sorted(data.rglob("*"))
        done = subprocess.run([sys.executable, "-m", "rsbdali", "index", str(data / "train")], check=False, **python)
        assert done.returncode == 0, done.stderr
        assert sorted(data.rglob("*")) == before
        assert list((cache_home / "rsbdali/index").iterdir())  # the cache goes elsewhere
        for path in (cache_home, cache_home / "rsbdali"):
            shutil.rmtree(path / "index", ignore_errors=True)
            path.chmod(0o555)
        done = subprocess.run([sys.executable, "-m", "rsbdali", "index", str(data / "train")], check=False, **python)
        assert done.returncode == 0, done.stderr
        assert "cannot be cached" in done.stderr
    finally:
        for folder in (*folders, cache_home, cache_home / "rsbdali"):
            folder.chmod(0o755)


# losses that are not finite


def spoil(run: Any, *places: tuple[int, int]) -> None:
    """Fill the images of a run's steps with NaN."""
    make = run.loader.batch

    def batch(epoch: int, step: int, group: int) -> SimpleNamespace:
        made: SimpleNamespace = make(epoch, step, group)
        if (epoch, step) in places:
            made.images.fill_(float("nan"))
        return made

    run.loader.batch = batch


@pytest.mark.parametrize("place", [(0, 0), (1, 1), (1, 2)])
def test_faults_of_a_loss_that_is_not_finite_stop_the_run_and_name_the_step(
    toy: Callable[..., Any], tmp_path: Path, place: tuple[int, int]
) -> None:
    run = toy(more={"name_of": "image {}".format})
    spoil(run, place)
    epoch, step = place
    file = tmp_path / "run" / f"nan-{epoch}-{step}.json"
    with pytest.raises(RecipeError) as caught:
        run.go()
    said = str(caught.value)
    assert said.startswith(f"the loss was nan in epoch {epoch + 1} step {step + 1}: its images are listed in {file}")
    replay = f"rsbdali replay --run {tmp_path / 'run'} --epoch {epoch + 1} --step {step + 1}"
    assert replay in said
    found = json.loads(file.read_text())
    assert (found["epoch"], found["step"], found["replay"]) == (epoch, step, replay)
    assert [(group["rank"], group["group"]) for group in found["groups"]] == [(0, 0), (0, 1)]
    for group in found["groups"]:
        plan = run.loader.batch(epoch, step, group["group"]).plan
        assert group["samples"] == plan.sample_N.tolist()
        assert group["names"] == [f"image {sample}" for sample in group["samples"]]
    # what was saved is from before
    if epoch:
        content = checkpoint.read(tmp_path / "run" / LAST)
        assert content["rsbdali"]["position"] == {"epoch": 1, "step": 0}
        assert all(value.isfinite().all() for value in content["state_dict"].values())


@pytest.mark.parametrize("amp_dtype", ["float32", "float16"])
def test_faults_of_a_loss_that_is_not_finite_are_skipped(
    toy: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, amp_dtype: str
) -> None:
    values = {"epochs": 1, "model_ema": True, "opt": "sgd", "amp_dtype": amp_dtype}
    run = toy(steps=3, more={"on_nan": "skip"}, **values)
    run.trainer._step.amp_dtype = getattr(torch, amp_dtype)
    seen = []
    spoil(run, (0, 2))
    run.loader.before = lambda *at: at == (0, 2) and seen.append(weights_of(run))
    assert run.go().epochs == 1
    assert "the loss of epoch 1 step 3 is nan: its update is left out" in caplog.text
    before, after = seen[-1], weights_of(run)
    assert before.keys() == after.keys()
    for name, value in before.items():  # BatchNorm's statistics and the averaged weights among them
        assert torch.equal(after[name], value), name
    assert all(value.isfinite().all() for value in after.values())


def weights_of(run: Any) -> dict[str, torch.Tensor]:
    both = {"raw": run.state.model, "ema": run.state.ema.module}
    state = {f"{k}.{name}": v.clone() for k, model in both.items() for name, v in model.state_dict().items()}
    for k, entry in enumerate(run.state.optimizer.state.values()):
        state.update({f"opt.{k}.{n}": v.clone() for n, v in entry.items() if isinstance(v, torch.Tensor)})
    return state


def test_faults_of_losses_that_stay_so_end_a_skipping_run_too(toy: Callable[..., Any]) -> None:
    run = toy(steps=MAX_IN_A_ROW + 5, more={"on_nan": "skip"}, epochs=1)
    with torch.no_grad():
        run.state.model.fc.weight.fill_(float("nan"))
    with pytest.raises(RecipeError, match=f"not finite for {MAX_IN_A_ROW} steps in a row, each left out"):
        run.go()


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_faults_of_gradients_that_overflow_at_every_scale_end_the_run(
    toy: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, on_nan: str
) -> None:
    """Finite losses, no update: from 65536 it is 17 halvings to below 1."""
    caplog.set_level("INFO")
    run = toy(steps=30, more={"on_nan": on_nan}, epochs=1, opt="sgd", amp_dtype="float16")
    run.state.model.fc.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = run.state.model.fc.weight.clone()
    with pytest.raises(RecipeError, match=r"float16's loss scale fell to 0.5 in epoch 1 step 17: gradients overflow"):
        run.go()
    assert torch.equal(run.state.model.fc.weight, before)
    assert "went from 65536 to 32768: the update of epoch 1 step 1 is left out" in caplog.text
    assert "went from 2 to 1: the update of epoch 1 step 16 is left out" in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss_scale"] for row in rows] == [65536.0 / 2**n for n in (0, *range(1, 17))]


def test_faults_of_one_overflow_do_not_end_it(toy: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run = toy(steps=3, epochs=1, opt="sgd", amp_dtype="float16")
    calls = []
    run.state.model.fc.weight.register_hook(
        lambda gradient: gradient * float("inf") if calls.append(1) or len(calls) == 3 else gradient
    )
    assert run.go().epochs == 1
    assert caplog.text.count("float16's loss scale went from") == 1
    assert "to 32768: the update of epoch 1 step 2 is left out" in caplog.text


def test_faults_of_losses_that_stay_so_in_float16_are_named_as_such(toy: Callable[..., Any]) -> None:
    run = toy(steps=30, epochs=1, amp_dtype="float16")
    with torch.no_grad():
        run.state.model.fc.weight.fill_(float("nan"))
    with pytest.raises(RecipeError, match="the loss was nan for 17 steps in a row, up to epoch 1 step 17"):
        run.go()


def test_faults_of_a_gradient_that_is_not_finite_are_skipped(toy: Callable[..., Any]) -> None:
    run = toy(steps=2, more={"on_nan": "skip"}, epochs=1, opt="sgd")
    calls = []

    def blow_up(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * float("inf") if len(calls) == 1 else gradient

    run.state.model.fc.weight.register_hook(blow_up)
    run.go()
    assert all(value.isfinite().all() for value in run.state.model.state_dict().values())


def test_faults_of_one_ranks_loss_are_decided_by_all_ddp_ranks_alike(tmp_path: Path) -> None:
    said = script("forked_ranks", tmp_path, 3, 2, "stop", "skip").splitlines()
    stopped, skipped = said[::2], said[1::2]  # rank after rank
    assert len(set(skipped)) == 1
    assert skipped[0].startswith("epochs 1 weights ")
    assert "nan" not in skipped[0]
    assert stopped[0].startswith("RecipeError the loss was nan in epoch 1 step 2: its images are listed in")
    assert stopped[1].startswith("RecipeError the loss was nan in epoch 1 step 2: ")
    groups = json.loads((tmp_path / "stop/nan-0-1.json").read_text())["groups"]
    assert [(group["rank"], group["group"]) for group in groups] == [(0, 0), (1, 1)]


def test_faults_leave_the_error_that_ended_the_run_in_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(content: object, file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rsbdali.runs.checkpoint.torch.save", full)

    def end_badly() -> None:
        with CheckpointManager(tmp_path, 2) as saver:
            saver.save_last({"a": 1})
            raise RecipeError("the loss was nan")

    with pytest.raises(RecipeError, match="the loss was nan"):
        end_badly()
    assert "cannot save" in caplog.text
