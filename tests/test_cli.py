"""The command line: its surface is frozen here, mistakes end in one line and exit code 2, the commands run for real."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from helpers.cli import call
from rsbdali.cli import main
from rsbdali.cli.main import cli
from rsbdali.cli.options import parse_overrides
from rsbdali.cli.recipe_keys import HELP, HINTS, RecipeKey
from rsbdali.errors import RecipeError
from rsbdali.recipe import Recipe

# each command's options by their first long name, recipe keys left out: KEYED holds the commands that take those
SURFACE = {
    "bench-loader": "--against --batch-size --data --decode --device --hw-decoder-load --json --peers --recipe "
    "--report --rounds --seconds --stages --workers RECIPE_NAME",
    "bench-step": "--batch-size --cuda-graph --device --json --peers --recipe --rounds --seconds --torch-compile "
    "RECIPE_NAME",
    "completion": "SHELL",
    "demo-data": "--out --seed",
    "doctor": "--data --json",
    "export": "--checkpoint --ema --format --out",
    "index": "--bad-list --class-map --rebuild --val-labels --workers FOLDER",
    "pack": "--max-size --out --seekable --shards --val-labels --workers FOLDER",
    "preview": "--data --draws --images --out --recipe RECIPE_NAME",
    "recipe list": "",
    "recipe show": "--as --world-size RECIPE_NAME",
    "replay": "--data --device --epoch --images --out --run --step",
    "report": "--out RUNS",
    "train": "--affinity --batch-size --checkpoint-every --class-map --cuda-graph --data --decode --demo "
    "--deterministic --device --experiment --hw-decoder-load --initial-checkpoint --log --max-bad-images --nproc "
    "--on-nan --out --pretrained --rank-timeout --recipe --resume --torch-compile --tuned --val-labels --workers "
    "RECIPE_NAME",
    "tune": "--against --allow-pixels --batch-size --data --device --minutes --recipe RECIPE_NAME",
    "validate": "--batch-size --checkpoint --class-map --data --device --model --pretrained --recipe "
    "--val-labels --workers",
}
KEYED = {"bench-loader", "bench-step", "preview", "recipe show", "train", "tune", "validate"}


def surface(group: click.Group, prefix: str = "") -> dict[str, str]:
    found = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found.update(surface(command, f"{prefix}{name} "))
        else:
            words = [first_long(p) for p in command.params if not is_of_recipe(p)]
            found[prefix + name] = " ".join(sorted(words))
    return found


def first_long(param: click.Parameter) -> str:
    if not isinstance(param, click.Option):
        return str(param.name).upper()
    return next(name for name in param.opts if name.startswith("--"))


def is_of_recipe(param: click.Parameter) -> bool:
    return isinstance(param, RecipeKey) or param.opts[0] in ("--set", "--help-recipe")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rsbdali", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}, check=False)


def test_the_surface_is_frozen() -> None:
    """A flag that appears or goes is a decision: change SURFACE with it, and CHANGELOG.md."""
    assert surface(cli) == {name: " ".join(sorted(words.split())) for name, words in SURFACE.items()}


def test_every_recipe_key_is_an_option_with_help() -> None:
    """A key that comes gets its line in HELP. `validate` has another `--model`."""
    names = {f"--{name.replace('_', '-')}" for name in Recipe().to_dict()} - {"--reported"}
    assert set(HELP) == set(HINTS)
    for name in KEYED:
        target: click.Command = cli
        for word in name.split():
            assert isinstance(target, click.Group)
            target = target.commands[word]
        keys = {param.opts[0] for param in target.params if isinstance(param, RecipeKey)}
        assert keys == names - ({"--model"} if name == "validate" else set())


@pytest.mark.parametrize("command", [[], *([*name.split()] for name in SURFACE)])
def test_every_command_has_help(command: list[str]) -> None:
    result = CliRunner().invoke(cli, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_parse_overrides() -> None:
    assert parse_overrides(("a=1", "b=x=y", "c=")) == {"a": "1", "b": "x=y", "c": ""}
    with pytest.raises(RecipeError, match="expected key=value"):
        parse_overrides(("lr",))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--recipe", "a3"], ["--data is missing"]),
        (["train", "--recipe", "a3", "--data", "nowhere"], ["nowhere", "no such folder"]),
        (["train", "--recipe", "a4", "--data", "."], ["unknown recipe 'a4'", "a1, a2, a3"]),
        (["train", "--set", "modle=resnet18", "--data", "."], ["'modle'", "did you mean 'model'"]),
        (["train", "--set", "lr=fast", "--data", "."], ["lr='fast'", "a number"]),
        (["train", "--bogus"], ["--bogus"]),
        (["validate", "--data", "."], ["--checkpoint"]),
        (["bench-loader"], ["--data is missing"]),
        (["recipe", "show", "a9"], ["a9"]),
        (["index", "nowhere"], ["nowhere"]),
        (["nonsense"], ["nonsense"]),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(
    arguments: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rsbdali", *arguments])
    # its handlers would outlive this test
    monkeypatch.setattr(sys.modules["rsbdali.cli.main"], "_set_up_logging", lambda debug: None)
    with pytest.raises(SystemExit) as exit_code:
        main()
    assert exit_code.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    for word in words:
        assert word in lines[0]


def test_a_mistake_in_a_process_of_its_own() -> None:
    done = run("train", "--data", "nowhere", "--device", "cpu")
    assert done.returncode == 2
    assert done.stderr == "Error: nowhere: no such folder: expected nowhere/train/<class>/<image>\n"
    assert done.stdout == ""


def invoked(*arguments: str | Path) -> str:
    """Output of a command, in this process."""
    result = CliRunner().invoke(cli, [*map(str, arguments)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


def test_hostile_settings(tmp_path: Path) -> None:
    bomb = "scale:\n- &a0 [x,x]\n" + "".join(f"- &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
    (tmp_path / "bomb.yaml").write_text(bomb)
    with pytest.raises(RecipeError) as caught:
        invoked("recipe", "show", tmp_path / "bomb.yaml")
    assert str(caught.value) == f"{tmp_path}/bomb.yaml has an alias (*a0) in line 3: write its value out"


def test_debug_shows_the_traceback() -> None:
    done = run("recipe", "show", "a9", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_recipe_commands() -> None:
    listed = invoked("recipe", "list")
    for word in ("a1", "a2", "a3", "78.1", "160 → 224", "deit3", "80.858"):
        assert word in listed
    shown = yaml.safe_load(invoked("recipe", "show", "A3", "--set", "epochs=7"))
    assert (shown["epochs"], shown["lr"]) == (7, 0.008)
    timm = yaml.safe_load(invoked("recipe", "show", "a3", "--as", "timm", "--world-size", "4"))
    assert (timm["batch_size"], timm["aa"]) == (512, "rand-m6-mstd0.5-inc1")


def test_index_names_what_is_no_image(image_tree: Callable[..., Path]) -> None:
    said = invoked("index", image_tree(odd=("text", "empty", "cmyk")))
    assert "odd_text.JPEG" in said
    assert "odd_empty.JPEG" in said
    assert "images    13 in 0.1 MB; 2 files left out" in said


def test_train_in_a_process_of_its_own_and_validate(image_tree: Callable[..., Path], tmp_path: Path) -> None:
    """In folders, and of images, whose names are no text."""
    name = os.fsdecode(b"caf\xe9")
    data = image_tree(per_class=4, odd=("truncated", "empty", "text", "gray", "cmyk", "png"), name=name).parent
    image_tree(per_class=3, split="val", seed=1, name=name)
    out = tmp_path / os.fsdecode(b"out\xff")
    small = "model=test_resnet img_size=32 test_img_size=40 epochs=2 global_batch_size=8 warmup_epochs=0 scale=[1,1]"
    overrides = [word for pair in small.split() for word in ("--set", pair)]
    common = ["--data", data, "--device", "cpu", "--workers", "1"]
    trained = run("train", *common, "--output", out, "--experiment", "run", *overrides)
    assert trained.returncode == 0, trained.stderr
    for name in ("odd_truncated", "odd_empty", "odd_text"):
        assert trained.stderr.count(name) == 1, trained.stderr
    assert "top-1" in trained.stdout
    assert trained.stdout.splitlines()[-1] == f"checkpoint {tmp_path}/out\\udcff/run/model_best.pth.tar"
    bad = (out / "run/bad_images.csv").read_text(encoding="utf-8")
    for name in ("odd_truncated", "odd_empty", "odd_text"):
        assert bad.count(f"/caf\\udce9/train/class0/{name}.JPEG,") == 1
    validated = call("validate", *common, "--checkpoint", out / "run" / "last.pth.tar")
    assert validated.returncode == 0, validated.stderr
    assert "over 9 images" in validated.stdout
    loss = float(validated.stdout.split("CE ")[1].split()[0])
    assert f"CE {loss:#.4g}" in trained.stderr  # to the last digit that is printed, on a CPU
    last = list(csv.DictReader((out / "run/summary.csv").read_text().splitlines()))[-1]
    assert float(last["eval_loss"]) == pytest.approx(loss, rel=1e-6)
