"""One table from the records of `bench/gpu.sh`: `python -m rsbdali.bench.summary RECORDS RUNS [BUNDLE]`.

RECORDS holds the JSON files, by name; RUNS a folder for each training run with its `metrics.jsonl`. A figure whose
record is missing says "not run". Below the table is what was cut off, left out or wrong. BUNDLE, if named, gets all
records in one file. Needs nothing but Python.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsbdali.errors import counted

DTYPES = "bfloat16", "float16"
AMPERE = 8  # major compute capability from which bfloat16 is native; float16 below
Records = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of the table.

    Attributes:
        name: what it is.
        value: the figure; None: not run.
        text: how it is shown.
        aim: what it should be at least (or at most, with `at_most`); None: no aim.
        at_most: whether the aim is an upper bound.
    """

    name: str
    value: float | None
    text: str
    aim: float | None = None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """`met`, `missed`, or nothing where there is no aim or no figure."""
        if self.value is None or self.aim is None:
            return ""
        return "met" if (self.value <= self.aim if self.at_most else self.value >= self.aim) else "missed"


def load(folder: Path, runs: Path) -> Records:
    """The records by name (`step-bfloat16`, `kernels`, …), and the last figures of training runs as `train-NAME`."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    for path in sorted(runs.glob("*/metrics.jsonl")):
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")  # a run that was killed leaves part of a line
        rows = [json.loads(line) for line in whole.splitlines()]
        epochs = [row for row in rows if row["kind"] == "epoch"]
        if rows:  # the last whole epoch, or the last moment of a run that was cut off
            found[f"train-{path.parent.name}"] = (epochs or rows)[-1]
    return found


def rows(records: Records) -> Iterator[Row]:
    """The table's figures, the most important first."""
    dtypes = _dtypes(records)
    yield from _randaugment(records.get("randaugment"))
    yield from _decoding(records.get("modes"))
    yield from _share(records.get("gpu_share"))
    yield from _same(records.get("same_plan"))
    for dtype in dtypes:
        yield from _step(records.get(f"step-{dtype}"), dtype)
    step = next((records[f"step-{d}"] for d in dtypes if f"step-{d}" in records), None)
    yield from _loader(records.get("loader"), step)
    for dtype in dtypes:
        yield from _training(records.get(f"train-{dtype}"), records.get(f"step-{dtype}"), dtype)
    yield from _kernels(records.get("kernels"))


def _dtypes(records: Records) -> list[str]:
    """The machine's native type first; what a CPU takes only where it was run."""
    gpus = [gpu for record in records.values() for gpu in record.get("machine", {}).get("gpu", [])]
    native = DTYPES[::-1] if gpus and int(gpus[0]["capability"].split(".")[0]) < AMPERE else DTYPES
    dry = ["float32"] if {"step-float32", "train-float32"} & records.keys() else []
    return [*native, *dry]


def notes(records: Records) -> Iterator[str]:
    """A line for each record that was cut off, each candidate that was left out, each op that was wrong."""
    for name, record in records.items():
        if record.get("finished") is False:
            yield f"{name}: cut off, its figures are of the rounds before"
        for who, why in record.get("skipped", {}).items():
            yield f"{name}: {who.removeprefix('stage:')} did not take part: {why}"
        for what, why in record.get("wrong", {}).items():
            yield f"{name}: {what} is WRONG and was not timed: {why}"


def _row(name: str, value: float | None, show: Callable[[float], str], aim: float | None = None, **more: Any) -> Row:
    return Row(name=name, value=value, text="not run" if value is None else show(value), aim=aim, **more)


def _times(value: float) -> str:
    return f"{value:.2f} ×"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _rate(value: float) -> str:
    return f"{value:,.0f} images/s"


def rate_of(record: Records | None, name: str) -> float | None:
    """Median images/s of a candidate in a record of bench-step or bench-loader; None where it took no part."""
    results = [] if record is None else record["results"]
    return next((float(r["images_per_s"]["median"]) for r in results if r["name"] == name), None)


def quotient(above: float | None, below: float | None) -> float | None:
    """One figure by another, None where one is missing."""
    return None if above is None or not below else above / below


def _step(record: Records | None, dtype: str) -> Iterator[Row]:
    ratio_to = {} if record is None else record["ratio_to"]
    ours = [] if record is None else [r for r in record["results"] if r["name"] == "rsbdali"]
    yield _row(f"step, {dtype}", rate_of(record, "rsbdali"), _rate)
    yield _row(f"step, {dtype}, of the matmul peak", ours[0]["utilization"] if ours else None, _percent)
    yield _row(f"step, {dtype}, by timm's with its Mixup", ratio_to.get("timm"), _times, 1.3)
    yield _row(f"step, {dtype}, by timm's without", ratio_to.get("timm-nomix"), _times)
    for name in ("rsbdali-compile", "rsbdali-graph", "rsbdali-compile-graph"):
        gain = quotient(rate_of(record, name), rate_of(record, "rsbdali"))
        yield _row(f"step, {dtype}, {name.removeprefix('rsbdali-')} by plain", gain, _times)
    compiled = quotient(rate_of(record, "rsbdali-compile"), rate_of(record, "timm-compile"))
    yield _row(f"step, {dtype}, both compiled, by timm's with its Mixup", compiled, _times)


def _kernels(record: Records | None) -> Iterator[Row]:
    results = [] if record is None else record["results"]
    mixes = [r for r in results if r["name"].startswith("mix, ")]
    least = min(mixes, key=lambda r: r["share_of_copy"], default=None)
    which = f" ({least['name'].removeprefix('mix, ')}, {least['dtype']})" if least else ""
    share = least["share_of_copy"] if least else None
    yield _row(f"mix, share of copy bandwidth, the least{which}", share, _percent, 0.8)
    for name, suffix, aim in (("LAMB", "", 2.0), ("LAMB, timm's", ", timm's", None)):
        found = [r for r in results if r["name"].startswith("lamb") and r["name"].endswith("timm's") == bool(suffix)]
        yield _row(f"{name}, by its floor", found[0]["times_floor"] if found else None, _times, aim, at_most=True)


def _randaugment(record: Records | None) -> Iterator[Row]:
    result: Records = {} if record is None else next(iter(record["results"]), {})
    rows = "" if record is None else f", {record['config']['rows']} × {record['config']['train_size'][0]} px"
    exact = None
    if record is not None and (result or record["wrong"]):
        exact = float(not record["wrong"])
    yield _row("RandAugment equals Pillow", exact, lambda value: "yes" if value else "NO", 1)
    yield _row(f"RandAugment{rows}", result.get("us"), lambda us: f"{us / 1e3:.2f} ms")


def _decoding(record: Records | None) -> Iterator[Row]:
    results = [] if record is None else record["results"]
    best = max(results, key=lambda r: r["images_per_s"]["median"], default=None)
    which = f", the fastest ({best['name'].removeprefix('decode-')})" if best else ""
    yield _row(f"decoding alone{which}", best["images_per_s"]["median"] if best else None, _rate)


def _same(record: Records | None) -> Iterator[Row]:
    equal = None if record is None else float(record["equal"])
    yield _row("one plan made again under load, equal", equal, lambda value: "yes" if value else "NO", 1)


def _training(run: Records | None, step: Records | None, dtype: str) -> Iterator[Row]:
    rate = None if run is None else run["images_per_s"]
    yield _row(f"training on photographs, {dtype}", rate, _rate)
    yield _row(f"training, {dtype}, by the synthetic step", quotient(rate, rate_of(step, "rsbdali")), _percent, 0.97)
    yield _row(f"training, {dtype}, waiting for data", None if run is None else run["wait_share"], _percent)


def _loader(record: Records | None, step: Records | None) -> Iterator[Row]:
    alone = rate_of(record, "rsbdali")
    cores = "" if record is None else f", {counted(record['config']['workers'], 'thread')}"
    yield _row(f"loader alone{cores}", alone, _rate)
    yield _row("loader alone, by the synthetic step", quotient(alone, rate_of(step, "rsbdali-nomix")), _times, 1.3)
    ratio_to = {} if record is None else record["ratio_to"]
    yield _row(f"loader, by timm's{cores}", ratio_to.get("timm"), _times)
    yield _row("loader, by that with RandAugment in DALI (dali-exact)", ratio_to.get("dali-exact"), _times)


def _share(record: Records | None) -> Iterator[Row]:
    loaders = {} if record is None else {loader["name"]: loader for loader in record["loaders"]}
    for name in ("graph", "graph, no RandAugment", "cpu"):
        yield _row(f"step beside the loader ({name}), by alone", loaders.get(name, {}).get("slower"), _times)
    gap = loaders.get("graph", {}).get("longest_gap_ms_beside")
    yield _row("longest wait for Python's lock (graph)", gap, lambda ms: f"{ms:.0f} ms")
    cost = {} if record is None else record["randaugment"] or {}
    yield _row("RandAugment, GPU time by the step's", cost.get("share_of_step"), _percent)


def table(found: Iterator[Row]) -> str:
    """Lines of plain text in columns: figure, value, aim, verdict."""
    lines = [("figure", "value", "aim", "")]
    for row in found:
        sign = "≤" if row.at_most else "≥"
        lines.append((row.name, row.text, "" if row.aim is None else f"{sign} {row.aim:g}", row.verdict))
    wide = [max(len(line[i]) for line in lines) for i in range(3)]
    return "\n".join(
        f"{name:{wide[0]}}  {value:>{wide[1]}}  {aim:{wide[2]}}  {verdict}".rstrip()
        for name, value, aim, verdict in lines
    )


def main(folder: Path, runs: Path, bundle: Path | None = None) -> str:
    """The table and the notes; with `bundle`, write all records there too."""
    records = load(folder, runs)
    if bundle is not None:
        bundle.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return "\n".join([table(rows(records)), *notes(records)])


if __name__ == "__main__":
    sys.stdout.write(main(*(Path(argument) for argument in sys.argv[1:])) + "\n")
