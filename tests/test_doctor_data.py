"""`doctor --data` and `index --bad-list`: what of the user's own images will be skipped or converted."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from rsbdali.cli.main import cli
from rsbdali.tools.doctor.data import check_data, judge_data
from rsbdali.tools.doctor.findings import Level


def test_images_of_every_fate_are_counted(image_tree: Callable[..., Path]) -> None:
    root = image_tree(classes=2, per_class=5, odd=("truncated", "cmyk", "text"))
    (finding,) = check_data(root.parent)
    assert finding.level is Level.WARNING
    counts = "1 will be replaced, 1 read through an RGB copy; 1 file"
    assert finding.text.startswith(f"12 of 12 images tried in {root}: {counts}")
    assert f"{root}/class0/odd_truncated.JPEG (image file is truncated" in finding.text


def test_good_images_are_good(image_tree: Callable[..., Path]) -> None:
    (finding,) = check_data(image_tree(classes=2, per_class=5).parent)
    assert finding.level is Level.GOOD
    assert "0 will be replaced" in finding.text


def test_a_child_that_dies_is_a_finding(tmp_path: Path) -> None:
    (finding,) = judge_data(-11, "", "")
    assert (finding.level, finding.text) == (Level.FATAL, "the images cannot be tried: killed by signal 11")
    (finding,) = check_data(tmp_path / "nowhere")
    assert finding.level is Level.FATAL
    assert "nowhere" in finding.text


def test_the_bad_list_names_every_file(image_tree: Callable[..., Path], tmp_path: Path) -> None:
    root = image_tree(classes=2, per_class=3, odd=("cmyk", "text"))
    (root / "class1" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"no image")
    result = CliRunner().invoke(cli, ["index", str(root), "--bad-list", str(tmp_path / "bad.csv")])
    assert result.exit_code == 0, result.output
    with (tmp_path / "bad.csv").open(newline="") as file:
        rows = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert rows == {
        f"{root}/class0/odd_text.JPEG": "not an image",
        f"{root}/class1/caf\\udce9.jpg": "not an image",
        f"{root}/class0/odd_cmyk.JPEG": "read through an RGB copy",
    }
    refused = CliRunner().invoke(cli, ["index", str(root), "--bad-list", str(tmp_path / "no" / "bad.csv")])
    assert "cannot be written: No such file or directory" in str(refused.exception or refused.output)
