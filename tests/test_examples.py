"""The examples train the demo data on the CPU: six kinds of trainer through our loader, some of them twice over.

Chance is 10 % and a loss of 0.33 is what ten classes give once every output says "perhaps one in ten".
"""

import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rsbdali.integrations import timm as timm_plug
from rsbdali.tools.demo_data import make_demo_data

EXAMPLES = Path(__file__).parents[1] / "examples"
EPOCHS = 4
# what A3 is at 160 pixels is too much for 40 steps: no RandAugment, larger crops
EASY = {"img_size": 64, "test_img_size": 64, "crop_pct": 1.0, "aa": "none", "scale": [0.2, 1.0]}
WITHOUT_MODEL = [
    "--recipe",
    "a3",
    *(word for key, value in EASY.items() for word in ("--set", f"{key}={value}")),
    "--batch-size",
    "16",
    "--epochs",
    str(EPOCHS),
    "--lr",
    "3e-3",
    "--workers",
    "2",
]
ARGUMENTS = [*WITHOUT_MODEL, "--model", "test_resnet"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo data, 160 training and 40 validation images of ten classes."""
    folder = tmp_path_factory.mktemp("demo") / "data"
    make_demo_data(folder, images_per_class_train=16, images_per_class_val=4)
    return folder


@pytest.fixture
def example() -> Callable[[str], ModuleType]:
    """`example("plain")` -> examples/plain.py as a module."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def check(losses: list[float], top1: float) -> None:
    assert losses[-1] < 0.8 * losses[0], losses
    assert top1 >= 20.0


def test_plain_and_its_resume(data: Path, example: Callable[[str], ModuleType], tmp_path: Path) -> None:
    plain, saved = example("plain"), tmp_path / "checkpoint.pt"
    arguments = ["--data", str(data), *ARGUMENTS, "--checkpoint", str(saved), "--save-every", "7"]
    losses, top1 = plain.main(arguments)
    check(losses, top1)
    position = torch.load(saved, weights_only=True)["loader"]
    assert (position["epoch"], position["step"]) == (EPOCHS - 1, 7)
    # the last three steps again, from the checkpoint, end where the whole run ended
    rest, top1_again = plain.main(arguments)
    assert len(rest) == 1
    assert top1_again == top1


def in_two_processes(name: str, *arguments: object) -> str:
    """What an example prints under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(EXAMPLES / f"{name}.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hugging_faces_trainer_and_its_resume(
    data: Path, example: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    trainer, output = example("hf_trainer"), tmp_path / "run"
    model = ["--model", "tiny", "--epochs", "3", "--save-every", "7", "--output", str(output)]
    losses, top1 = trainer.main(["--data", str(data), *WITHOUT_MODEL, *model])
    assert losses[-1] < losses[0]
    weights = (output / "checkpoint-30" / "model.safetensors").read_bytes()
    # from step 21, the first of the last epoch: checkpoints behind it are gone
    for folder in output.glob("checkpoint-*"):
        if int(folder.name.split("-")[1]) > 21:
            shutil.rmtree(folder)
    assert json.loads((output / "checkpoint-21" / "loader.json").read_text())["step"] == 1
    _, top1_again = trainer.main(["--data", str(data), *WITHOUT_MODEL, *model])
    assert top1_again == top1
    assert (output / "checkpoint-30" / "model.safetensors").read_bytes() == weights


LIKE_TORCHVISION = [
    *("--model", "resnet18", "-b", "16", "--lr", "1e-3", "-j", "1", "--recipe", "a3", "--set", "cutmix=0"),
    *(
        word
        for key, value in {**EASY, "img_size": 32, "test_img_size": 32}.items()
        for word in ("--set", f"{key}={value}")
    ),
]


def test_torchvisions_loop_and_its_resume(data: Path, example: Callable[[str], ModuleType], tmp_path: Path) -> None:
    reference = example("torchvision_reference")
    arguments = ["--data-path", str(data), *LIKE_TORCHVISION, "--epochs", "3"]
    losses, top1 = reference.main([*arguments, "--output-dir", str(tmp_path)])
    assert min(losses[1:]) < losses[0], losses
    rest, top1_again = reference.main([*arguments, "--resume", str(tmp_path / "model_1.pth")])
    assert (rest, top1_again) == (losses[2:], top1)


@pytest.mark.parametrize("name", ["hf_trainer", "torchvision_reference"])
def test_two_processes(name: str, data: Path, tmp_path: Path) -> None:
    if name == "hf_trainer":
        settings = ["--data", data, *WITHOUT_MODEL, "--model", "tiny", "--output", tmp_path, "--workers", "1"]
    else:
        settings = ["--data-path", data, *LIKE_TORCHVISION]
    out = in_two_processes(name, *settings, "--epochs", "1")
    assert len(re.findall(r"top-1 [\d.]+ %", out)) == 1  # rank 0 alone prints


def test_accelerate_and_its_resume(data: Path, example: Callable[[str], ModuleType], tmp_path: Path) -> None:
    loop = example("accelerate_loop")
    arguments = ["--data", str(data), *ARGUMENTS, "--checkpoint", str(tmp_path / "state"), "--save-every", "7"]
    losses, top1 = loop.main(arguments)
    check(losses, top1)
    rest, top1_again = loop.main(arguments)
    assert len(rest) == 1
    assert top1_again == top1


def test_lightning(
    data: Path, example: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("lightning_module")
    top1 = module.main(["--data", str(data), *ARGUMENTS, "--devices", "1", "--output", str(tmp_path)])
    losses = [float(text) for text in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == EPOCHS
    check(losses, top1)


def test_timm_script(data: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    script = str(EXAMPLES / "timm_script.py")
    arguments = [
        "--data-dir",
        str(data),
        "--model",
        "test_resnet",
        "--img-size",
        "64",
        "--crop-pct",
        "1.0",
        "-b",
        "16",
        "--epochs",
        str(EPOCHS),
        "--opt",
        "adamw",
        "--lr",
        "3e-3",
        "--warmup-epochs",
        "0",
        "--scale",
        "0.2",
        "1.0",
        "--aa",
        "rand-m1-p0.1",
        "-j",
        "2",
        "--device",
        "cpu",
    ]
    with caplog.at_level(logging.INFO, "train"):
        assert timm_plug.main([script, *arguments]) == 0
    found = [re.search(r"loss ([\d.]+) top-1 ([\d.]+)", record.getMessage()) for record in caplog.records]
    figures = [(float(match[1]), float(match[2])) for match in found if match]
    assert len(figures) == EPOCHS
    check([loss for loss, _ in figures], figures[-1][1])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rsbdali:")]
    assert lines == [
        "rsbdali: training loader by rsbdali in place of timm's: 160 images, 10 batches of 16, 2 threads, cpu, mixing",
        "rsbdali: evaluation loader by rsbdali in place of timm's: 40 images, 3 batches of 16, 2 threads, cpu",
    ]
