"""docs/TUTORIAL.md, command by command, in a new folder: made small, and stopped where it says so."""

import re
import shlex
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from rsbdali.cli.main import cli
from rsbdali.runs.folder import read_args
from rsbdali.training.trainer import Trainer

PAGE = Path(__file__).parents[1] / "docs/TUTORIAL.md"
ELSEWHERE = ("pip install .", "rsbdali doctor", "rsbdali train a3 --demo")  # an install, child processes, test_demo.py
SMALL = {"resnet18": "test_resnet", "20": "2", "30": "3", "64": "8"}
TINY = "--img-size 32 --test-img-size 32 --mix-groups 1 --warmup-epochs 0 --device cpu -j 1"


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    return [line for block in blocks for line in block.splitlines() if line not in ELSEWHERE]


def run(line: str) -> tuple[int, str]:
    words = [SMALL.get(word, word) for word in shlex.split(line)[1:]]
    words += shlex.split(TINY) if words[:2] == ["train", "a3"] else []
    words += ["--device", "cpu"] if words[0] in ("replay", "validate") else []
    result = CliRunner().invoke(cli, words, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value or 0, result.output


def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 8), ("val", 2)):
        for label in ("cat", "dog"):
            (tmp_path / "photos" / split / label).mkdir(parents=True)
            for i in range(count):
                picture = Image.linear_gradient("L").resize((50 + i, 48)).convert("RGB")
                picture.save(tmp_path / "photos" / split / label / f"{i}.jpg")
    shown, asked = Trainer._show, []

    def press_ctrl_c(trainer: Trainer) -> None:
        shown(trainer)
        if not asked and trainer.state.epoch == 1:
            asked.append(trainer._stop._note(signal.SIGINT, None))

    monkeypatch.setattr(Trainer, "_show", press_ctrl_c)
    done = {line: run(line) for line in commands()}
    began, resumed, longer = (line for line in done if line.startswith("rsbdali train"))
    assert done[began][0] == 130
    assert done[began][1].splitlines()[:2] == [
        "stopped by SIGINT in epoch 2, saved; go on with",
        f"  {resumed}",
    ]
    assert {code for line, (code, _) in done.items() if line != began} == {0}
    assert read_args(tmp_path / "output/first")[1]["epochs"] == int(SMALL[longer.split()[-1]])
    for name in ("preview.png", "report.html", "output/first/replay-epoch1-step1.csv", "model/config.json"):
        assert (tmp_path / name).exists(), name
