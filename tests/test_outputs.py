"""The files of a run: timm's columns, lines that a resume does again dropped, folders that are not overwritten."""

import csv
import json
import os
from pathlib import Path

import pytest
from timm.utils.summary import update_summary

from rsbdali.environment import write_record
from rsbdali.errors import RsbdaliError
from rsbdali.recipe import Recipe
from rsbdali.runs.folder import RunFolder, add_bad_image, check_free, choose_folder, read_args


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_summary_is_as_timm_writes_it(tmp_path: Path) -> None:
    metrics = {"loss": 1.5, "top1": 60.0, "top5": 80.0}
    timms = tmp_path / "timm.csv"
    folder = RunFolder(tmp_path / "run")
    for epoch in range(2):
        update_summary(epoch, {"loss": 2.5}, metrics, timms, lr=0.1)
        values = {"epoch": epoch, "train_loss": 2.5, "eval_loss": 1.5, "eval_top1": 60.0, "eval_top5": 80.0, "lr": 0.1}
        folder.add_epoch(values, {"images_per_s": 3.0})
    assert (tmp_path / "run/summary.csv").read_bytes().replace(b"\r", b"") == timms.read_bytes().replace(b"\r", b"")


def test_an_epoch_without_evaluation_leaves_blanks(tmp_path: Path) -> None:
    RunFolder(tmp_path).add_epoch({"epoch": 0, "train_loss": 2.5, "lr": 0.1}, {})
    assert (tmp_path / "summary.csv").read_text() == "epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n0,2.5,,,,0.1\n"


def test_a_resume_drops_what_it_does_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for epoch in range(3):
        for step in (1, 2):
            folder.add_metrics({"kind": "step", "epoch": epoch, "step": step})
        folder.add_epoch({"epoch": epoch, "train_loss": 1.0, "lr": 0.1}, {})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "st')  # the run was cut off here
    RunFolder(tmp_path, epoch=1, step=2)
    assert [row["epoch"] for row in rows(tmp_path / "summary.csv")] == ["0"]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["epoch"], r.get("step")) for r in records] == [
        ("step", 0, 1),
        ("step", 0, 2),
        ("epoch", 0, None),
        ("step", 1, 1),
        ("step", 1, 2),
    ]


def test_args_can_be_used_as_a_recipe(tmp_path: Path) -> None:
    recipe = Recipe.load("a3", {"epochs": 3})
    RunFolder(tmp_path).write_args(recipe, {"data": "/data", "torch": "2.x"})
    assert (tmp_path / "args.yaml").read_text().startswith("# data: /data\n# torch: 2.x\n")
    assert Recipe.load(str(tmp_path / "args.yaml")) == recipe


def test_a_bad_image_is_written_once(tmp_path: Path) -> None:
    for _ in range(2):
        add_bad_image(tmp_path, "a, b.JPEG", "cut off")
        add_bad_image(tmp_path, "c.JPEG", "empty")
    assert rows(tmp_path / "bad_images.csv") == [
        {"path": "a, b.JPEG", "reason": "cut off"},
        {"path": "c.JPEG", "reason": "empty"},
    ]


STRANGE = os.fsdecode(b"caf\xe9 \n \r \xe2\x80\xa8 x.jpg")  # Latin-1, line ends, a separator of lines in Unicode


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    """Each line is written once, also by a run that goes on."""
    folder = tmp_path / os.fsdecode(b"run\xff")
    for _ in range(2):
        RunFolder(folder).write_args(Recipe.load("a3"), {"data": f"/{STRANGE}", "device": "cpu"})
        add_bad_image(folder, f"/{STRANGE}", "cut off")
        add_bad_image(folder, "/é.jpg", f"{STRANGE}: empty")
    with (folder / "bad_images.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.reader(file))
    escaped = STRANGE.replace("\udce9", "\\udce9")
    assert found == [["path", "reason"], [f"/{escaped}", "cut off"], ["/é.jpg", f"{escaped}: empty"]]
    facts, values = read_args(folder)
    assert facts == {"data": "/caf\\udce9 \\n \\r \\u2028 x.jpg", "device": "cpu"}
    assert values == Recipe.load("a3").to_dict()


def test_texts_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "below" / os.fsdecode(b"record\xff.json")
    write_record(path, {"command": STRANGE})
    assert json.loads(path.read_text(encoding="utf-8")) == {"command": STRANGE}  # the escapes are JSON's own
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    full = tmp_path / "full.json"
    full.mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_record(full, {})
    assert caught.value.filename == str(full)
    assert list(tmp_path.rglob(".*")) == []


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_names_of_runs(tmp_path: Path) -> None:
    recipe = Recipe.load("a3")

    def choose(experiment: str | None = None, resume: str | None = None) -> str:
        return choose_folder(tmp_path, experiment, recipe, resume=resume).name

    assert choose() == choose(resume="auto") == "a3-resnet50"
    (tmp_path / "a3-resnet50").mkdir()
    (tmp_path / "a3-resnet50d").mkdir()
    assert choose() == "a3-resnet50-2"
    assert choose(resume="auto") == "a3-resnet50"
    (tmp_path / "a3-resnet50-2").mkdir()
    assert choose(resume="auto") == "a3-resnet50-2"
    (tmp_path / "mine").mkdir()
    assert choose("mine") == "mine"
    (tmp_path / "mine/last.pth.tar").touch()
    assert choose("mine", resume="auto") == "mine"
    for resume in (None, str(tmp_path / "a3-resnet50/last.pth.tar")):
        with pytest.raises(RsbdaliError, match="mine holds a run already: go on with --resume "):
            check_free(tmp_path / "mine", "mine", resume)
    check_free(tmp_path / "mine", "mine", str(tmp_path / "mine/checkpoint-3.pth.tar"))
    assert choose("mine", str(tmp_path / "mine/checkpoint-3.pth.tar")) == "mine"
    # without a name a run goes on where its checkpoint is, if that is a run's folder
    assert choose(resume=str(tmp_path / "mine/last.pth.tar")) == "a3-resnet50-3"
    (tmp_path / "mine/args.yaml").touch()
    assert choose(resume=str(tmp_path / "mine/last.pth.tar")) == "mine"


@pytest.mark.parametrize(
    "name", ["../x", "a/../../b", "/tmp/x", "a//b", "a/", "", ".", "a/./b", "a b", "a\n", "\udcff", "x" * 101]
)
def test_an_experiment_stays_in_the_output_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(RsbdaliError, match=r"experiment '.*' is no name: letters, .* parts with / between"):
        choose_folder(tmp_path, name, Recipe(), resume=None)


def test_an_experiment_may_have_parts(tmp_path: Path) -> None:
    assert choose_folder(tmp_path, "a3/seed-0.v_2/é", Recipe(), resume=None) == tmp_path / "a3/seed-0.v_2/é"


@pytest.mark.parametrize(
    ("model", "name"), [("hf-hub:timm/resnet50.a1_in1k", "a3-hf-hub-timm-resnet50.a1_in1k"), ("../../x", "a3-..-..-x")]
)
def test_a_model_of_a_hub_has_one_folder(tmp_path: Path, model: str, name: str) -> None:
    assert choose_folder(tmp_path, None, Recipe(name="a3", model=model), resume=None) == tmp_path / name


def test_damaged_rows_are_dropped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder(tmp_path)
    for epoch in range(3):
        folder.add_metrics({"kind": "step", "epoch": epoch, "step": 1})
        folder.add_epoch({"epoch": epoch, "train_loss": 1.5, "lr": 0.1}, {})
    metrics, summary = tmp_path / "metrics.jsonl", tmp_path / "summary.csv"
    good, (head, *rows_before) = metrics.read_bytes(), summary.read_bytes().splitlines(keepends=True)
    junk = [
        b"\0" * 40,
        b"\xff\xfe",
        b"{}",
        b"[1]",
        b'{"kind": "step", "epoch": 0}',
        b'{"kind": 1, "epoch": 0}',
        b"[" * 99_999,
    ]
    junk += [b'{"kind": "epoch", "epoch": ' + b"9" * 5000 + b"}", b"x" * (3 << 20)]
    metrics.write_bytes(b"".join(line + b"\n" for line in junk) + good + b'{"kind": "st')
    summary.write_bytes(
        b"epocH,train\n" + rows_before[0] + b"1,x,,,,0.1\n" + b"".join(rows_before[1:]) + b"nan,,,,,\n-1,\n2,1.0"
    )
    with caplog.at_level("WARNING"):
        RunFolder(tmp_path, epoch=2, step=1)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"{summary}: 4 lines that do not parse are dropped",
        f"{metrics}: 9 lines that do not parse are dropped",
    ]
    assert summary.read_bytes() == head + b"".join(rows_before[:2])
    assert metrics.read_bytes() == b"".join(good.splitlines(keepends=True)[:5])
    caplog.clear()
    RunFolder(tmp_path, epoch=2, step=1)
    assert not caplog.records


def test_bad_images_go_on_behind_damage(tmp_path: Path) -> None:
    (tmp_path / "bad_images.csv").write_bytes(b"path,reason\n\xff\xfe,x\n")
    add_bad_image(tmp_path, "a.jpg", "empty")
    assert (tmp_path / "bad_images.csv").read_bytes().endswith(b"a.jpg,empty\n")
