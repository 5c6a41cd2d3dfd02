"""A person's first hour: what people type works, or ends in one line with 2 and a way out; resuming is one word."""

import importlib.metadata
import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from PIL import Image

import rsbdali
from helpers.common import TINY
from rsbdali.cli import main
from rsbdali.cli.main import cli
from rsbdali.errors import RsbdaliError
from rsbdali.runs.folder import read_args
from rsbdali.runs.resume_command import read_options, resume_command, shell_word
from rsbdali.tools.doctor import checks
from rsbdali.tools.doctor.findings import Finding, Level
from rsbdali.training.signals import StopRequest
from rsbdali.training.trainer import Trainer

KEYS = (
    "--model test_resnet --img-size 32 --test-img-size 32 --epochs 2 --warmup-epochs 0 --mix-groups 1 --log-interval 1"
)
QUICK = "--device cpu -j 1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images in `my data/`, a file, a class map of other classes, and a run that was finished."""
    folder = tmp_path_factory.mktemp("first hour")
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (folder / "my data" / split / label).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (40, 40), (i * 60, 9, 9)).save(folder / "my data" / split / label / f"{i}.jpg")
    (folder / "file").write_text("no folder")
    (folder / "map.txt").write_text("\0" + "x" * 5000 + "\n" + "y" * 5000 + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        invoke(f"train A3 --data 'my data' -o 'out put' --experiment run --batch-size 4 --lr auto {KEYS} {QUICK}")
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def invoke(line: str) -> str:
    """Output of a command that works."""
    result = CliRunner().invoke(cli, shlex.split(line), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    assert not result.return_value, result.output
    return result.output


def refused(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with, and with 2."""
    monkeypatch.setattr(sys, "argv", ["rsbdali", *shlex.split(line)])
    monkeypatch.setattr(sys.modules["rsbdali.cli.main"], "_set_up_logging", lambda debug: None)
    with pytest.raises(SystemExit) as exit_code:
        main()
    (said,) = capsys.readouterr().err.splitlines()
    assert exit_code.value.code == 2, said
    assert said.startswith("Error: ")
    return said


FEW = f"{KEYS} {QUICK}"
REFUSED: dict[str, tuple[str, list[str]]] = {
    "a key that is none": ("train --data 'my data' --epoch 3", ["--epoch", "--epochs"]),
    "a key in two ways": ("train --lr 1e-3 --set lr=2e-3", ["--lr 1e-3", "--set lr=2e-3", "differ"]),
    "two batches": ("train --data D --batch-size 8 --global-batch-size 9", ["global batch of 8", "9 is given"]),
    "two recipes": ("train a3 --recipe a1 --data 'my data'", ["a3", "--recipe a1", "differ"]),
    "data in the recipe's place": ("train 'my data'", ["my data is a folder", "--data my data"]),
    "no data": ("train a3", ["--data is missing", "--demo"]),
    "a level too high": ("train --data .", ["./train/<class>", "my data has one"]),
    "a level too deep": ("train --data 'my data/train'", ["no train folder", "my data has one"]),
    "two levels too deep": ("train --data 'my data/train/cat'", ["no train folder", "my data has one"]),
    "the output is a file": (f"train --data 'my data' --batch-size 4 -o file {FEW}", ["file", "File exists"]),
    "another recipe": ("train a1 --resume 'out put/run'", ["is a run of a3, not of a1", "--initial-checkpoint"]),
    "a folder of runs": ("train --resume 'out put'", ["no run's folder", "out put/run is one"]),
    "a key that no resume changes": ("train --resume 'out put/run' --model resnet18", ["model test_resnet → resnet18"]),
    "one-row groups": (
        f"train --data 'my data' --batch-size 1 -o rows {FEW}",
        ["batch norm", "raise global_batch_size"],
    ),
    "groups that divide no batch": (
        f"train --data 'my data' --batch-size 6 -o rows {FEW} --mix-groups 4",
        ["global_batch_size=6 is no multiple of the 4 mix groups", "take 4"],
    ),
    "a batch over the data": (f"train --data 'my data' -o rows {FEW}", ["8 images", "global_batch_size=8", "lr=auto"]),
    "a wrong class map": ("index 'my data' --class-map map.txt", ["class folder 'cat'", "xxx…", "class map"]),
    "a rate for another optimizer": ("train --data D --lr auto --opt sgd", ["a rate of lamb", "give lr as a number"]),
    "a count below zero": ("train --data 'my data' --workers -1", ["--workers", "x>=1"]),
    "epochs below zero": ("train --data 'my data' --epochs -1", ["epochs=-1 is out of range"]),
    "a device that is none": ("train --data 'my data' --device tpu", ["device=tpu", "cuda"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_line_with_a_way_out(
    case: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line, words = REFUSED[case]
    said = refused(line, monkeypatch, capsys)
    assert len(said) < 400
    assert [word for word in words if word not in said] == [], said


@pytest.mark.parametrize(
    ("line", "package"),
    [
        ("train --data 'my data' --log wandb", "pip install wandb"),
        ("export --checkpoint 'out put/run/last.pth.tar' --format onnx -o x", "pip install onnx"),
    ],
)
def test_a_missing_package_is_named(
    line: str, package: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert package in refused(line, monkeypatch, capsys)


def test_what_the_run_keeps(here: Path) -> None:
    facts, values = read_args(here / "out put/run")
    assert (values["name"], values["model"], values["global_batch_size"]) == ("a3", "test_resnet", 4)
    assert values["lr"] == pytest.approx(8e-3 * (4 / 2048) ** 0.5)
    options = read_options(here / "out put/run")
    assert options["data"] == str(here / "my data") == facts["data"]
    assert (options["device"], options["workers"], options["nproc"]) == ("cpu", 1, 1)


def test_a_finished_run_has_nothing_left(here: Path) -> None:
    said = invoke("train --resume 'out put/run'")
    assert said.startswith("nothing is left: all 2 epochs are done")
    assert "\n  rsbdali train --resume 'out put/run' --epochs 4\n" in said


def test_a_resume_takes_what_the_run_had_and_says_what_is_new(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From another folder, with a space in the run's; stopped by a signal, whose hint is taken unchanged."""
    monkeypatch.chdir(here.parent)
    shown = Trainer._show

    def stop_at_once(trainer: Trainer) -> None:
        shown(trainer)
        signal_once(trainer._stop)

    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        patch.setattr(Trainer, "_show", stop_at_once)
        run = shlex.quote(str(here / "out put/run"))
        result = CliRunner().invoke(cli, shlex.split(f"train --resume {run} --epochs 5 -j 2"), standalone_mode=False)
    assert result.exception is None
    assert result.return_value == 130
    assert "recipe, data and options as before, but for --workers 2 (before: 1)" in caplog.text
    assert "epochs 2 → 5 (acts at once)" in caplog.text
    first, hint = result.output.splitlines()[:2]
    assert first == "stopped by SIGINT in epoch 3, saved; go on with"
    caplog.clear()
    with caplog.at_level("INFO"):
        said = invoke(hint.strip().removeprefix("rsbdali ") + " --epochs 3")
    assert "epoch 3/3" in caplog.text
    assert re.search(r"best top-1 .* % \(epoch \d, checkpoint-\d\.pth\.tar\)", said)
    assert read_args(here / "out put/run")[1]["epochs"] == 3


def signal_once(stop: StopRequest) -> None:
    stop._note(signal.SIGINT, None)


@pytest.mark.parametrize(
    ("text", "word"),
    [("a/b-1", "a/b-1"), ("a b", "'a b'"), ("it's", "'it'\"'\"'s'"), ("caf\udce9 x\n", r"$'caf\xe9 x\x0a'")],
)
def test_a_folder_as_a_word_of_the_shell(text: str, word: str) -> None:
    assert shell_word(text) == word
    assert resume_command(Path(text)) == f"rsbdali train --resume {word}"


def test_banner_and_epoch_lines(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        invoke(f"train a3 --data 'my data' -o lines --batch-size 4 --lr 0.5 {FEW}")
    lines = [record.getMessage() for record in caplog.records]
    at = next(i for i, line in enumerate(lines) if line.startswith("a3: test_resnet, "))
    assert lines[at].endswith("2 epochs of 2 steps, float32 on the CPU")
    assert lines[at + 1] == f"data: {here / 'my data/train'}, 8 images, 8 to evaluate on, 2 classes"
    assert lines[at + 2] == "output: lines/a3-test_resnet; batch 4 = 1 rank × 1 mix group × 4 rows"
    assert "times the rate that goes with a batch of 4" in caplog.text
    epochs = [line for line in lines if re.match(r"epoch \d/2  BCE \d\.\d{3,4}  CE ", line)]
    assert len(epochs) == 2
    assert all(len(line) <= 100 for line in epochs)


@pytest.mark.parametrize("line", ["", "recipe"])
def test_called_bare_it_shows_help(line: str) -> None:
    result = CliRunner().invoke(cli, line.split())
    assert result.exit_code == 0
    assert result.output.startswith("Usage:")
    assert "Error" not in result.output


def commands(group: click.Group, prefix: str = "") -> list[str]:
    found = []
    for name, each in group.commands.items():
        found += commands(each, f"{prefix}{name} ") if isinstance(each, click.Group) else [prefix + name]
    return found


def test_help_fits_and_every_default_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    overview = invoke("--help")
    assert "..." not in overview.split("\n", 1)[1]
    assert "settings that differ, machines, checkpoints." in overview
    for name in commands(cli):
        text = invoke(f"{name} --help")
        assert max(map(len, text.splitlines())) <= 80, name
    text = invoke("train --help")
    for heading in ("Data:", "Run:", "Speed:", "Logging:", "Recipe:"):
        assert f"\n{heading}\n" in text
    assert "--weight-decay" not in text
    keys = invoke("train a1 --help-recipe")
    assert "--weight-decay X" in keys
    assert "[a1: 600]" in keys


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    assert "_RSBDALI_COMPLETE" in invoke(f"completion {shell}")


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ("train", "a", {"a1", "a2", "a3"}),
        ("train --recipe", "a", {"a1", "a2", "a3"}),
        ("train", "--weight", {"--weight-decay"}),
        ("preview --set", "clip", {"clip_grad="}),
        ("train --model", "resnet1", {"resnet18", "resnet101"}),
    ],
)
def test_what_is_completed(words: str, incomplete: str, expected: set[str], cache_home: Path) -> None:
    models = cache_home / f"rsbdali/models-timm-{importlib.metadata.version('timm')}.txt"
    models.write_text("resnet18\nresnet101\nvgg16\n")
    found = ShellComplete(cli, {}, "rsbdali", "_RSBDALI_COMPLETE").get_completions(words.split(), incomplete)
    assert {item.value for item in found} == expected


def test_a_home_folder_that_the_shell_left(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert "classes   2" in invoke("index '~/my data'")


def test_doctor_for_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = [Finding(Level.GOOD, "DALI", "there"), Finding(Level.WARNING, "CPU", "slow", "buy one")]
    monkeypatch.setattr(checks, "examine", lambda data: found)
    printed = json.loads(invoke("doctor --json"))
    assert printed["can_train"] is True
    assert printed["findings"][1] == {"level": "warning", "topic": "CPU", "text": "slow", "fix": "buy one"}
    assert invoke(f"doctor --json {tmp_path / 'found.json'}") == ""
    assert json.loads((tmp_path / "found.json").read_text()) == printed


def test_the_first_signal_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        while stop.signal is None:
            pass
    assert "SIGINT: stopping after this step; again to quit now" in caplog.text
    with caplog.at_level("INFO"), StopRequest(says=False) as stop:
        caplog.clear()
        os.kill(os.getpid(), signal.SIGINT)
        while stop.signal is None:
            pass
    assert caplog.text == ""


def test_a_run_of_damaged_options(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "args.yaml").write_text("# options: [1\nname: a3\n")
    with pytest.raises(RsbdaliError, match="is damaged: its options is no JSON"):
        read_options(tmp_path)
    (tmp_path / "args.yaml").write_text("name: a3\n")
    assert read_options(tmp_path) == {}
    run = here / "bad options"
    run.mkdir()
    text = (here / "out put/run/args.yaml").read_text()
    (run / "args.yaml").write_text(text.replace('"on_nan": "stop"', '"on_nan": "foo"'))
    said = refused("train --resume 'bad options'", monkeypatch, capsys)
    assert "args.yaml: its --on-nan is 'foo': 'foo' is not one of 'stop', 'skip'." in said
    said = refused("train --resume 'bad options' --on-nan skip", monkeypatch, capsys)
    assert "holds no checkpoint yet" in said


def test_a_run_from_python(here: Path) -> None:
    """`rsbdali.train(…)`, as in a notebook: options and keys by name, a resume by the folder; errors name arguments."""
    quick = {"device": "cpu", "workers": 1, "output": "from python"}
    small = {**TINY, "mix_groups": 1, "warmup_epochs": 0}
    summary = rsbdali.train("a3", "my data", epochs=1, global_batch_size=4, lr="auto", **quick, **small)
    assert summary.outcome.epochs == 1
    assert summary.folder == Path("from python/a3-test_resnet")
    assert summary.outcome.last is not None
    again = rsbdali.train(resume=summary.folder, epochs=2)
    assert (again.folder, again.outcome.epochs, again.outcome.updates) == (summary.folder, 2, 2)
    auto = rsbdali.train(resume="auto", output="from python", experiment=summary.folder.name, epochs=3)
    assert (auto.folder, auto.outcome.epochs, auto.outcome.updates) == (summary.folder, 3, 2)
    with pytest.raises(RsbdaliError, match="num_workers=-1: expected 0 or more"):
        rsbdali.create_loader("my data/train", 32, 2, num_workers=-1, device="cpu")
    for arguments, words in (
        ({"epoch": 3}, "no argument 'epoch', did you mean 'epochs'?"),
        ({}, "data is missing"),
        ({"data": "my data", "model": "resnet5"}, "model='resnet5': timm has no such model, did you mean 'resnet50'"),
        ({"data": "my data", "opt": "lam"}, "opt='lam': timm has no such optimizer, did you mean 'lamb'"),
        ({"data": "my data", "device": "tpu"}, "device=tpu: use auto, cpu, cuda or cuda:N"),
        ({"data": "my data", "workers": -1}, "workers=-1: expected a whole number from 1 on"),
        ({"data": "my data", "experiment": "../x"}, "experiment '../x' is no name"),
        ({"data": "my data", "recipe": 5}, "recipe=5: expected a name, a path or a Recipe"),
        ({"data": "my data", "loggers": "wandb"}, "loggers='wandb': expected a sequence of names"),
        ({"data": "my data", "workers": True}, "workers=True: expected a whole number"),
        ({"data": "my data", "workers": "2"}, "workers='2': expected a whole number"),
        ({"data": "my data", "on_nan": "go"}, "on_nan='go': expected stop or skip"),
        ({"data": "my data", "rank_timeout": -1}, "rank_timeout=-1: expected minutes"),
        ({"data": "my data", "hw_decoder_load": 7}, "hw_decoder_load=7: expected a share from 0 to 1"),
        ({"data": "my data", "checkpoint_every": 500}, "checkpoint_every=500: expected steps or a time"),
        ({"data": "my data", "checkpoint_every": "often"}, "'often': expected a number of steps or a time"),
        ({"resume": "nowhere"}, "nowhere: there is no such run"),
    ):
        with pytest.raises(RsbdaliError, match=re.escape(words)):
            rsbdali.train(**arguments)  # type: ignore[arg-type]


def test_a_resume_starts_as_many_processes_as_the_run_had(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `--nproc` started them; a rank among them starts none."""
    run = here / "several"
    run.mkdir()
    text = (here / "out put/run/args.yaml").read_text()
    (run / "args.yaml").write_text(text.replace('"nproc": 1', '"nproc": 2'))
    started: list[tuple[int, str]] = []

    def launch(nproc: int, arguments: list[str], device: str) -> int:
        started.append((nproc, device))
        return 0

    monkeypatch.setattr("rsbdali.distributed.launch.launch", launch)
    assert invoke("train --resume several") == ""
    assert started == [(2, "cpu")]
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RsbdaliError, match="several holds no checkpoint yet"):
        invoke("train --resume several")
    assert started == [(2, "cpu")]
