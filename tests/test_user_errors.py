"""The ordinary mistakes, one by one: each ends in one line that names the thing, and with 2 where it is a command."""

import builtins
import os
import pwd
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rsbdali import create_loader
from rsbdali.cli import main
from rsbdali.cli.refusals import of_the_machine
from rsbdali.errors import RecipeError, RsbdaliError
from rsbdali.recipe import Recipe
from rsbdali.runs.claim import claimed

SETTINGS = ("model=test_resnet", "img_size=32", "test_img_size=32", "epochs=1", "global_batch_size=4", "mix_groups=1")
SMALL = [word for pair in SETTINGS for word in ("--set", pair)]
RECORD = {
    "recipe": {**Recipe().to_dict(), "model": "test_resnet"},
    "versions": {},
    "position": {"epoch": 0, "step": 1},
    "class_names": ["a", "b"],
    "mix_groups": 1,
    "steps_per_epoch": 2,
    "updates": 1,
    "loss_sum": 0.0,
    "loss_steps": 1,
    "seconds": 0.0,
    "best": {"top1": None, "epoch": None},
    "history": {},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images in data/, a run's files in run/, a file, and checkpoints that are none."""
    folder = tmp_path_factory.mktemp("mistakes")
    for split in ("train", "val"):
        for label in "ab":
            (folder / "data" / split / label).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (40, 40), (i * 99, 9, 9)).save(folder / "data" / split / label / f"{i}.jpg")
    (folder / "file").write_text("no folder")
    (folder / "output").mkdir()
    (folder / "output/taken").touch()
    (folder / "text.pth").write_text("no checkpoint")
    (folder / "empty.pth").touch()
    torch.save([1, 2], folder / "list.pth")
    saved: dict[str, Any] = {
        "no-record.pth": {"rsbdali": 3},
        "no-classes.pth": {"rsbdali": {key: value for key, value in RECORD.items() if key != "class_names"}},
        "no-names.pth": {"rsbdali": {**RECORD, "class_names": [1, 2]}},
        "no-place.pth": {"rsbdali": {**RECORD, "position": {"epoch": "first", "step": 0}}},
        "bad-recipe.pth": {"rsbdali": {**RECORD, "recipe": {"modle": "x"}}},
        "behind.pth": {"rsbdali": {**RECORD, "position": {"epoch": 0, "step": 9}}},
        "no-optimizer.pth": {"rsbdali": RECORD, "optimizer": []},
    }
    for name, content in saved.items():
        torch.save({"arch": "test_resnet", "state_dict": {}, "optimizer": {}, "epoch": 0, **content}, folder / name)
    torch.save({"state_dict": {1: torch.ones(1)}, "arch": "test_resnet"}, folder / "numbers.pth")
    torch.save({"state_dict": {"a": torch.ones(1)}, "arch": 5}, folder / "no-arch.pth")
    for name, text in {"binary": "\0", "list": "- 1\n", "processes": "# processes: many\nmodel: test_resnet\n"}.items():
        (folder / f"run-{name}").mkdir()
        (folder / f"run-{name}/args.yaml").write_text(text)
        (folder / f"run-{name}/summary.csv").write_text("epoch\n")
    return folder


# arguments, in which {} is the folder of `place`, and what the line must say
COMMANDS: dict[str, tuple[str, list[str]]] = {
    "the output is a file": ("train --data {}/data --output {}/file", ["{}/file", "File exists"]),
    "the output is below a file": ("train --data {}/data --output {}/file/x", ["{}/file/x", "Not a directory"]),
    "the experiment is a file": (
        "train --data {}/data --output {}/output --experiment taken",
        ["{}/output/taken", "Not a directory"],
    ),
    "the output is in /proc": ("train --data {}/data --output /proc/x", ["/proc/x", "No such file or directory"]),
    "the demo's output is a file": ("train --demo --output {}/file", ["{}/file", "Not a directory"]),
    "the export is below a file": ("export --checkpoint {}/list.pth --format timm --out {}/file", ["{}/file", "there"]),
    "the picture is below a file": (
        "preview --data {}/data --images 1 --draws 1 --out {}/file/x.png",
        ["{}/file"],
    ),
    "the picture is a folder": (
        "preview --data {}/data --images 1 --draws 1 --out {}/output/../d.png",
        ["d.png"],
    ),
    "the report is a folder": ("report {}/run-processes --out {}/data", ["{}/data", "Is a directory"]),
    "the report is below a file": ("report {}/run-processes --out {}/file/x", ["{}/file", "File exists"]),
    "the shards are below a file": ("pack {}/data -o {}/file/x --shards 1", ["{}/file/x", "Not a directory"]),
    "the demo data is below a file": ("demo-data -o {}/file/x", ["{}/file/x", "Not a directory"]),
    "the bad list is below a file": ("index {}/data --bad-list {}/file/x", ["{}/file/x", "Not a directory"]),
    "nothing to resume": (
        "train --data {}/data --output {}/output --resume {}/gone.pth",
        ["no checkpoint {}/gone.pth"],
    ),
    "resume from a folder": (
        "train --data {}/data --output {}/output --resume {}/data",
        ["{}/data is no run's folder: it holds no args.yaml"],
    ),
    "resume from text": ("train --data {}/data --output {}/output --resume {}/text.pth", ["{}/text.pth", "damaged"]),
    "resume behind the epoch": (
        "train --data {}/data --output {}/output --resume {}/behind.pth",
        ["step 9 of an epoch of 2 steps"],
    ),
    "resume without an optimizer": (
        "train --data {}/data --output {}/output --resume {}/no-optimizer.pth",
        ["{}/no-optimizer.pth", "optimizer"],
    ),
    "start from text": ("train --data {}/data --output {}/output --initial-checkpoint {}/text.pth", ["{}/text.pth"]),
    "an empty checkpoint": ("validate --data {}/data --checkpoint {}/empty.pth", ["{}/empty.pth", "truncated"]),
    "a checkpoint that is a list": ("validate --data {}/data --checkpoint {}/list.pth", ["{}/list.pth", "a list"]),
    "a record that is none": ("validate --data {}/data --checkpoint {}/no-record.pth", ["`rsbdali` is no record"]),
    "a record without classes": (
        "validate --data {}/data --checkpoint {}/no-classes.pth",
        ["holds no rsbdali.class_names"],
    ),
    "classes that are numbers": ("validate --data {}/data --checkpoint {}/no-names.pth", ["class_names is [1, 2]"]),
    "a position that is text": (
        "export --checkpoint {}/no-place.pth --format timm --out {}/x",
        ["position.epoch is 'first'"],
    ),
    "a record's recipe": ("export --checkpoint {}/bad-recipe.pth --format timm --out {}/x", ["'modle'"]),
    "weights by number": ("validate --data {}/data --checkpoint {}/numbers.pth", ["no model weights"]),
    "a model that is a number": ("validate --data {}/data --checkpoint {}/no-arch.pth", ["model"]),
    "a report of binary settings": ("report {}/run-binary", ["{}/run-binary/args.yaml"]),
    "a report of settings in a list": ("report {}/run-list", ["{}/run-list/args.yaml holds no settings"]),
    "a replay of damaged facts": (
        "replay --run {}/run-processes --step 1",
        ["args.yaml is damaged: processes: many"],
    ),
    "a replay of no run": ("replay --run {}/data --step 1", ["{}/data", "no args.yaml"]),
    "a table of binary data": ("index {}/empty.pth", ["{}/empty.pth"]),
}


def command(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    monkeypatch.setattr(sys, "argv", ["rsbdali", *arguments])
    monkeypatch.setattr(sys.modules["rsbdali.cli.main"], "_set_up_logging", lambda debug: None)
    with pytest.raises(SystemExit) as exit_code:
        main()
    assert exit_code.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize("mistake", COMMANDS)
def test_a_mistake_of_the_command_line(
    mistake: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, words = COMMANDS[mistake]
    if mistake == "the picture is a folder":
        (place / "d.png").mkdir(exist_ok=True)
    arguments = [word.format(*[place] * 3) for word in text.split()]
    more = [*SMALL, "--device", "cpu", "--workers", "1", "--decode", "cpu"] if arguments[0] == "train" else []
    line = command([*arguments, *more], monkeypatch, capsys)
    for word in words:
        assert word.format(place) in line
    assert sorted(path.name for path in (place / "output").iterdir()) == ["taken"]  # nothing begun is left


def test_the_second_run_is_refused_with_who_holds_the_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", place / "data", "--output", place / "output", "--experiment", "mine", *SMALL]
    with claimed(place / "output", "mine", Recipe(), resume=None):
        line = command([*map(str, words), "--device", "cpu", "--workers", "1", "--decode", "cpu"], monkeypatch, capsys)
    assert f"{place / 'output/mine'} is in use: process {os.getpid()} on" in line


def test_no_home_for_the_cache(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    line = command(["index", str(place / "data")], monkeypatch, capsys)
    assert line == "Error: there is no home folder to keep the cache in: set HOME or XDG_CACHE_HOME"


def test_a_module_that_does_not_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "yaml":
            raise ImportError("libtorch_cpu.so: failed to map segment from shared object")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    line = command(["recipe", "show", "a3"], monkeypatch, capsys)
    assert line.startswith("Error: out of memory (libtorch_cpu.so: failed to map")


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (400_000_000, 400_000_000))


def run(*arguments: str, **how: Any) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "rsbdali", *arguments], stderr=subprocess.PIPE, text=True, check=False, **how
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", ["recipe show a3", "recipe list", "--version"])
def test_a_full_disk_behind_standard_output(arguments: str) -> None:
    with Path("/dev/full").open("w") as full:
        assert run(*arguments.split(), stdout=full) == (2, "Error: standard output: No space left on device\n")


def test_a_closed_standard_output() -> None:
    assert run("recipe", "list", preexec_fn=lambda: os.close(1)) == (0, "")


def test_a_limit_of_memory() -> None:
    code, said = run("validate", "--model", "test_resnet", "--pretrained", "--data", ".", preexec_fn=limited)
    assert code == 2
    assert said.startswith("Error: out of memory")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("error", [RuntimeError("a fault of ours"), ImportError("no module x"), OSError("no number")])
def test_faults_of_the_program_keep_their_traceback(error: Exception) -> None:
    assert of_the_machine(error) is None


def of_loader(**arguments: Any) -> Callable[[str], object]:
    def make(data: str) -> object:
        return create_loader(data, 32, 2, True, num_workers=1, device="cpu", decode="graph", **arguments)

    return make


def load_state(state: dict[str, Any]) -> Callable[[str], object]:
    def load(data: str) -> object:
        with create_loader(data, 32, 2, True, num_workers=1, device="cpu", decode="graph") as loader:
            loader.load_state_dict({**loader.state_dict(), **state} if state else state)
        return None

    return load


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (of_loader(img_dtype="float16"), "img_dtype='float16': expected a float type of torch"),
        (of_loader(img_dtype=torch.int64), "img_dtype=torch.int64"),
        (of_loader(prefetch=0), "prefetch=0: expected a number of batches in flight, at least 1"),
        (of_loader(prefetch=-1), "prefetch=-1"),
        (of_loader(prefetch="2"), "prefetch='2'"),
        (load_state({}), "the loader's state has no epoch: expected what `state_dict` gave"),
        (load_state({"step": "2"}), "no step"),
        (load_state({"identity": {}}), "the loader's state has no images"),
    ],
)
def test_a_mistake_in_a_call(call: Callable[[str], object], words: str, place: Path) -> None:
    with pytest.raises(RsbdaliError) as caught:
        call(str(place / "data/train"))
    assert words in str(caught.value)


def test_a_group_of_one_row_is_too_small_for_batch_norm(toy: Callable[..., Any]) -> None:
    with pytest.raises(
        RecipeError, match="batch norm of test_resnet has one value a channel in a pass of 1 image of 32"
    ):
        toy(global_batch_size=2).go()
