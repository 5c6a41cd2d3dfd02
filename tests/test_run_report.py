"""The page of runs: what is in it, where its curves are, and that nothing in a run's files can break out of it."""

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from rsbdali.cli.main import cli
from rsbdali.errors import RsbdaliError
from rsbdali.recipe import Recipe
from rsbdali.runs.folder import RunFolder
from rsbdali.runs.report.charts import (
    BOTTOM,
    FINEST,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    chart,
    thinned,
    tick_text,
    ticks,
)
from rsbdali.runs.report.page import report, write_report
from rsbdali.runs.report.reading import read_runs

HOSTILE = '<script>alert("x")</script> & <b>'
VOID = {"meta"}
OPTIONAL = {"p", "td", "th", "tr", "thead", "tbody"}  # HTML lets their end tags out


class Page(HTMLParser):
    """Tags, texts and tables of a page; an end tag that fits nothing is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID | OPTIONAL:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in OPTIONAL:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.rows and "table" in self.open:
            self.rows[-1][-1] += data


def make_run(
    folder: Path,
    *,
    epochs: int = 4,
    rate: float = 100.0,
    top1: float = 40.0,
    facts: dict[str, object] | None = None,
    **keys: object,
) -> Path:
    """A run's folder as `rsbdali train` leaves it, with figures that are easy to recompute."""
    recipe = Recipe.load("a3", {"epochs": 10, **keys})
    files = RunFolder(folder)
    versions = {"torch": "2.14", "device": "cpu", "data": "flowers", "steps_per_epoch": 4}
    files.write_args(recipe, {**versions, **(facts or {})})
    for epoch in range(epochs):
        for step in (2, 4):
            speeds = {"images_per_s": rate + step, "wait_share": 0.1 * epoch}
            place = {"kind": "step", "epoch": epoch, "step": step}
            files.add_metrics({**place, "loss": 1.0, "lr": 0.008, **speeds})
        row = {"epoch": epoch, "train_loss": 1 / (epoch + 1), "eval_loss": 2.0, "lr": 0.008}
        row |= {"eval_top1": top1 + epoch % 3, "eval_top5": 90.0}
        files.add_epoch(row, {"images_per_s": rate, "wait_share": 0.25})
    for name in ("last.pth.tar", "model_best.pth.tar", "checkpoint-2.pth.tar", "checkpoint-1.pth.tar"):
        (folder / name).write_bytes(bytes(1_500_000))
    return folder


def test_a_report_needs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from rsbdali.runs.report.page import write_report;"
        "assert 'torch' not in sys.modules and 'nvidia' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_run_says(tmp_path: Path) -> None:
    (run,) = read_runs([make_run(tmp_path / "one")])
    assert (run.name, run.steps_per_epoch, len(run.steps), run.notes) == ("one", 4, 8, [])
    assert [row["epoch"] for row in run.epochs] == [0, 1, 2, 3]
    assert run.best is not None
    assert (run.best["epoch"], run.best["eval_top1"]) == (2, 42.0)
    kept = [("checkpoint-2", 2, 42.0), ("checkpoint-1", 1, 41.0)]
    found = [(c.name.removesuffix(".pth.tar"), c.epoch, c.top1) for c in run.checkpoints]
    assert found == [("model_best", 2, 42.0), ("last", None, None), *kept]
    assert run.recipe["epochs"] == 10
    assert run.facts["device"] == "cpu"


def test_the_page_of_two_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "slow", rate=50.0, facts={"device": "cpu", "torch": "2.7"})
    make_run(tmp_path / "fast", rate=200.0, top1=60.0, lr=0.004, aa="none", facts={"device": "A100"})
    text = report(read_runs([tmp_path]))  # a folder of runs means all of them, by name
    page = Page(text)
    assert "Best top-1: 62.00 %, fast, after epoch 3 of 10" in text
    assert ["fast", "resnet50", "4 of 10", "62.00 (epoch 3)", "60.00", "0.25", "200", "25.0%", "0"] in page.rows
    assert ["slow", "resnet50", "4 of 10", "42.00 (epoch 3)", "40.00", "0.25", "50", "25.0%", "0"] in page.rows
    assert ["key", "fast", "slow"] in page.rows
    assert ["lr", "0.004", "0.008"] in page.rows
    assert ["aa", "none", "rand-m6-mstd0.5-inc1"] in page.rows
    assert not [row for row in page.rows if row[:1] == ["epochs"]]  # the same in both
    assert ["torch", "2.14", "2.7"] in page.rows
    assert ["data", "flowers"] in page.rows
    assert ["fast", "model_best.pth.tar", "62.00", "3", "1.5"] in page.rows
    assert "the runs are of different devices: compare their speeds with care" in text
    assert ["4", "0.25", "2", "60.000", "90.000", "0.008", "200", "25.0%"] in page.rows
    assert page.tags.count("figure") == 6


def test_a_page_needs_nothing_else(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    page = Page(report(read_runs([tmp_path / "run"])))
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]


def test_nothing_breaks_out_of_the_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / HOSTILE.replace("/", "∕"), facts={"data": HOSTILE, HOSTILE: 1})
    settings = (folder / "args.yaml").read_text().replace("name: a3", f"name: '{HOSTILE}'")
    (folder / "args.yaml").write_text(settings.replace("model: resnet50", f"model: '{HOSTILE}'"))
    make_run(tmp_path / "plain")
    text = report(read_runs([tmp_path]))
    page = Page(text)
    assert "script" not in page.tags
    assert "<b>" not in text
    assert ["data", HOSTILE, "flowers"] in page.rows


def test_one_run_against_its_recipe(tmp_path: Path) -> None:
    page = Page(report(read_runs([make_run(tmp_path / "run", lr=0.002)])))
    assert ["key", "this run", "recipe"] in page.rows
    assert ["epochs", "10", "100"] in page.rows
    assert ["lr", "0.002", "0.008"] in page.rows
    assert not [row for row in page.rows if row[0] == "aa"]
    own = Page(report(read_runs([make_run(tmp_path / "own", name="mine")])))  # of a recipe that is not ours
    assert ["key", "value"] in own.rows


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "summary.csv").write_text("epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n0,2.5,,,,0.1\n")
    text = report(read_runs([bare]))
    for words in (
        "metrics.jsonl is missing: the epochs are from summary.csv, without speeds",
        "args.yaml is missing",
        "no epoch was evaluated",
        "No run has been evaluated yet.",
        "not recorded by any run",
        "bare: no checkpoint is there",
    ):
        assert words in text
    begun = tmp_path / "begun"
    RunFolder(begun).add_metrics({"kind": "step", "epoch": 0, "step": 5, "loss": 3.0})
    with (begun / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "ep')
    text = report(read_runs([begun, bare]))
    assert "begun: no epoch is complete yet" in text
    assert "begun: metrics.jsonl: 1 damaged line left out" in text
    assert "not recorded: begun" in text  # below the curve that the other run has
    Page(text)


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", epochs=2)
    RunFolder(folder, epoch=2).add_epoch(
        {"epoch": 2, "train_loss": math.nan, "eval_top1": math.nan, "lr": 0.008}, {"images_per_s": math.inf}
    )
    text = report(read_runs([folder]))
    (run,) = read_runs([folder])
    assert run.best is not None
    assert run.best["epoch"] == 1
    assert ["3", "–", "–", "–", "–", "0.008", "–", "–"] in Page(text).rows
    assert "nan" not in text.lower().replace("financ", "")


@pytest.mark.parametrize("keep", ["metrics.jsonl", "summary.csv"])
def test_a_run_that_was_tampered_with(tmp_path: Path, keep: str) -> None:
    folder = make_run(tmp_path / "run", epochs=2)
    for name in {"metrics.jsonl", "summary.csv"} - {keep}:
        (folder / name).unlink()
    with (folder / "metrics.jsonl").open("a" if keep == "metrics.jsonl" else "w") as file:
        for epoch in ("1" * 5000, "1" * 400, "-1", "true", '"x"', "[" * 100_000):
            file.write(f'{{"kind": "epoch", "epoch": {epoch}}}\n')
        file.write('{"kind": "step", "epoch": 1, "step": "first", "loss": []}\n')
        file.write(f'{{"kind": "step", "epoch": 1, "step": 1, "loss": {"1" * 400}}}\n')
    with (folder / "summary.csv").open("ab") as table:
        table.write(b"inf,1\nnan,1\n-3,1\n1e300,1\n\xff,1\n,\n")
    (folder / "bad_images.csv").write_bytes(b"path,reason\n" + b"x" * 200_000 + b",y\n")
    (run,) = read_runs([folder])
    assert [row["epoch"] for row in run.epochs] == [0, 1]
    assert "damaged line" in "".join(run.notes)
    Page(report([run]))


def test_names_that_two_runs_share(tmp_path: Path) -> None:
    make_run(tmp_path / "a/run")
    make_run(tmp_path / "b/run")
    runs = read_runs([tmp_path / "a", tmp_path / "b/run", tmp_path / "a/run"])
    assert [run.name for run in runs] == ["a/run", "b/run"]


def test_a_users_mistakes(tmp_path: Path) -> None:
    with pytest.raises(RsbdaliError, match="nowhere: no such folder"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(RsbdaliError, match=r"is no run of rsbdali train: it has neither metrics\.jsonl nor summary"):
        read_runs([tmp_path])
    folder = make_run(tmp_path / "run")
    (folder / "args.yaml").write_text("a: [1")
    with pytest.raises(RsbdaliError, match=r"args\.yaml is no YAML"):
        read_runs([folder])
    (folder / "args.yaml").write_text("[]")
    with pytest.raises(RsbdaliError, match=r"args\.yaml holds no settings"):
        read_runs([folder])


@pytest.mark.parametrize(
    ("low", "high", "about", "expected"),
    [
        (0, 8, 8, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (0, 100, 5, [0, 20, 40, 60, 80, 100]),
        (9.5, 68.5, 5, [0, 20, 40, 60, 80]),
        (0, 0.0068, 5, [0, 0.002, 0.004, 0.006, 0.008]),
        (-1, 1, 5, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks(low: float, high: float, about: int, expected: list[float]) -> None:
    assert ticks(low, high, about) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-6, 78.125])
def test_ticks_of_a_constant(value: float) -> None:
    found = ticks(value, value, 5)
    assert found[0] < value < found[-1]
    assert 3 <= len(found) <= 8


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [
        (0.002, 0.002, "0.002"),
        (20, 20, "20"),
        (1500, 500, "1,500"),
        (0.5, 0.5, "0.5"),
        (0, 1e-9, "0"),
        (2e-5, 1e-5, "2e-05"),
        (1.0, 0.1, "1.0"),
        (3e7, 1e7, "3e+07"),
    ],
)
def test_tick_text(value: float, step: float, text: str) -> None:
    assert tick_text(value, step) == text


def points_of(figure: str) -> list[list[tuple[float, float]]]:
    """Data points of each curve, read back from the drawing by its axes' labels."""
    svg = ElementTree.fromstring(re.search(r"<svg.*?</svg>", figure)[0].replace("class=faint", 'class="faint"'))  # type: ignore[index]
    texts = [t for t in svg.iter("text") if t.get("text-anchor") == "end"]
    levels = [(float(t.get("y") or 0) - 4, float((t.text or "").replace(",", ""))) for t in texts]
    (y0, v0), (y1, v1) = levels[0], levels[-1]
    assert v0 < v1
    assert y0 > y1  # more is further up, which an SVG counts downwards
    bottoms = [t for t in svg.iter("text") if t.get("text-anchor") == "middle" and (t.text or "")[0].isdigit()]
    (x0, e0), (x1, e1) = [(float(t.get("x") or 0), float(t.text or 0)) for t in (bottoms[0], bottoms[-1])]
    curves = []
    for path in svg.iter("path"):
        if path.get("stroke-width") == "2":
            pairs = [p.split() for p in re.split("[ML]", path.get("d") or "")[1:]]
            places = [(float(x), float(y)) for x, y in pairs]
            assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in places)
            curves.append(
                [(e0 + (x - x0) * (e1 - e0) / (x1 - x0), v0 + (y - y0) * (v1 - v0) / (y1 - y0)) for x, y in places]
            )
    return curves


def test_curves_are_where_the_axes_say() -> None:
    first, second = [(1.0, 12.5), (2.0, 30.0), (5.0, 71.0)], [(0.5, 3.0), (4.0, 55.5)]
    figure = chart("Top-1", "%", [Line(name="a", style=0, points=first), Line(name="b", style=1, points=second)])
    curves = points_of(figure)
    for found, expected in zip(curves, (first, second), strict=True):
        # a tenth of a unit of the drawing is written: 0.04 of the 80 on this axis
        assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], abs=0.01)
        assert [y for _, y in found] == pytest.approx([y for _, y in expected], abs=0.05)
    assert figure.count("<circle") == 5
    assert "stroke-dasharray" in figure
    assert 'aria-label="Top-1 in % over epochs"' in figure


def test_a_single_point_and_long_lines() -> None:
    single = chart("x", "", [Line(name="a", style=0, points=[(1.0, 5.0)])], marked=False)
    assert single.count("<circle") == 1
    long = [(k / 100, float(k % 7)) for k in range(3001)]
    reduced = thinned(long)
    assert len(reduced) <= FINEST
    assert sum(y for _, y in reduced) / len(reduced) == pytest.approx(3.0, abs=0.02)
    assert reduced[0][0] == pytest.approx(0.035, abs=0.01)
    assert thinned(long[:FINEST]) == long[:FINEST]
    assert chart("x", "", [Line(name="a", style=0, points=long)]).count("<circle") == 0


def test_the_command(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    output = tmp_path / "pages/report.html"
    result = CliRunner().invoke(cli, ["report", str(tmp_path / "run"), "-o", str(output)])
    assert (result.exit_code, result.output) == (0, f"wrote {output}\n")
    write_report([tmp_path / "run"], tmp_path / "again.html")
    assert output.read_text() == (tmp_path / "again.html").read_text()
    assert sorted(path.name for path in output.parent.iterdir()) == ["report.html"]


def test_a_damaged_run_is_reported(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", facts={"steps_per_epoch": "²"})
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(
            b"[" * 99_999
            + b"\n"
            + b'{"kind": "epoch", "epoch": 1e400}\n{"kind": "step", "epoch": 0, "step": 1, "loss": 1'
            + b"0" * 400
            + b"}\n"
        )
    (folder / "checkpoint-².pth.tar").touch()
    (run,) = read_runs([folder])
    assert [len(run.epochs), run.steps_per_epoch] == [4, None]
    assert "metrics.jsonl: 2 damaged lines left out" in run.notes
    assert "checkpoint-².pth.tar" not in [c.name for c in run.checkpoints]
    Page(report([run]))
    (folder / "metrics.jsonl").write_bytes(b"")
    (folder / "summary.csv").write_bytes(b"epoch,train_loss,eval_top1\nnan,1,2\n0,1.5,70\n1,\xff,\0\n\n")
    (run,) = read_runs([folder])
    assert [(row["epoch"], row["train_loss"], row["eval_top1"]) for row in run.epochs] == [
        (0, 1.5, 70.0),
        (1, None, None),
    ]
    assert "summary.csv: 2 damaged lines left out" in run.notes
