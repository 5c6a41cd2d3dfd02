"""What a bench leaves that is interrupted, and what it does without a candidate that runs out of GPU memory."""

import itertools
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from helpers.common import CPU, TINY, Tree
from rsbdali.bench import decode_modes, kernels, step
from rsbdali.bench import loader as bench
from rsbdali.bench.measure.meter import Round
from rsbdali.bench.race import candidate, step_race
from rsbdali.bench.race.candidate import Candidate, CandidateFailed
from rsbdali.bench.race.feeds import FeedSpec
from rsbdali.bench.race.out_of_memory import out_of_memory
from rsbdali.bench.race.race import start
from rsbdali.bench.race.step_race import Entry, Race
from rsbdali.bench.race.synthetic import step_recipe
from rsbdali.errors import DeviceError
from rsbdali.recipe import Recipe

SMALL = Recipe.load("a3", TINY)
RATE = Round(images=100, seconds=1.0, cpu_s=0.5, wait_s=(0.5, 0.5), memory_bytes=1 << 20, cores=2, busy_s=0.6, load=0.5)


class Contender:
    """A candidate without a process: its rounds, then an error if one is left."""

    def __init__(self, name: str, rounds: int, error: BaseException | None = None) -> None:
        self.name, self.note, self._left, self._error = name, "", rounds, error

    def round(self, _: float) -> Round:
        if not self._left:
            assert self._error is not None
            raise self._error
        self._left -= 1
        return RATE


def loader_options(data: Path, **values: Any) -> bench.BenchOptions:
    return bench.BenchOptions(
        data=data, recipe=SMALL, batch_size=4, workers=1, device="cpu", seconds=0.01, rounds=3, **values
    )


def test_bench_loader_keeps_its_rounds(image_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contenders = [Contender("rsbdali", 3), Contender("timm", 2, KeyboardInterrupt())]
    monkeypatch.setattr(bench, "start", lambda *_: contenders)
    with pytest.raises(KeyboardInterrupt):
        bench.run(loader_options(image_tree(), peers=("timm",), json=tmp_path / "r.json"))
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["finished"] is False
    assert [len(result["rounds"]) for result in record["results"]] == [2, 2]
    assert record["ratio_to"] == {"timm": 1.0}


def test_bench_loader_goes_on_without_a_peer_and_without_the_model(
    image_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = CandidateFailed("timm", "out of GPU memory")
    monkeypatch.setattr(bench, "start", lambda *_: [Contender("rsbdali", 3), Contender("timm", 1, failure)])

    def no_memory(*_: Any, **__: Any) -> None:
        raise DeviceError("out of GPU memory in a pass of 4 images")

    monkeypatch.setattr(bench, "measure_model", no_memory)
    chosen = loader_options(image_tree(), peers=("timm",), against="test_resnet", json=tmp_path / "r.json")
    report = bench.run(chosen)
    assert report.skipped == {"timm": "out of GPU memory", "test_resnet": "out of GPU memory"}
    assert report.model is None
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["finished"] is True
    assert [len(result["rounds"]) for result in record["results"]] == [3]
    console = Console(record=True, width=120, quiet=False)
    bench.print_report(console, report)
    assert "test_resnet did not take part: out of GPU memory" in console.export_text()


def test_decode_modes_keep_their_rounds(
    image_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    crash = CandidateFailed("stage:decode-cpu-full", "ended with status -11 and said nothing")
    contenders = [Contender("stage:decode-cpu", 2, KeyboardInterrupt()), Contender("stage:decode-cpu-full", 1, crash)]
    monkeypatch.setattr(decode_modes, "start", lambda *_: contenders)
    options: dict[str, Any] = {"batch_size": 4, "workers": 1, "seconds": 0.01, "json": tmp_path / "m.json"}
    data = image_tree()
    with pytest.raises(KeyboardInterrupt):
        decode_modes.main(data, "cpu", rounds=3, **options)
    kept = json.loads((tmp_path / "m.json").read_text())
    assert kept["finished"] is False
    assert [(r["name"], len(r["rounds"])) for r in kept["results"]] == [("decode-cpu", 2)]
    assert kept["skipped"] == {"stage:decode-cpu-full": "ended with status -11 and said nothing"}
    contenders[:] = [Contender("stage:decode-cpu", 1)]
    assert decode_modes.main(data, "cpu", rounds=1, **options)["finished"]
    assert capsys.readouterr().out.split()[:3] == ["decode-cpu", "100", "images/s"]


def test_bench_step_keeps_its_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = itertools.chain([RATE] * 3, [KeyboardInterrupt()])

    def measure(*_: Any, **__: Any) -> Round:
        found = next(measured)
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(step_race.meter, "measure", measure)
    monkeypatch.setattr(Entry, "build", lambda *_: lambda: 4)
    monkeypatch.setattr(step, "matmul_peak", lambda *_: 1e12)
    options = step.StepOptions(recipe=SMALL, batch_size=4, device="cpu", json=tmp_path / "s.json")
    with pytest.raises(KeyboardInterrupt):
        step.run(options)
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["finished"] is False
    assert [(r["name"], len(r["rounds"])) for r in record["results"]] == [("rsbdali", 1), ("rsbdali-nomix", 1)]


def test_kernels_keep_their_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1e-3, 2e-3])
    monkeypatch.setattr(kernels, "copy_bandwidth", lambda _: 1e9)

    def seconds_of(*_: Any) -> float:
        return next(times)  # at its end: the interruption

    monkeypatch.setattr(kernels, "seconds_of", seconds_of)
    with pytest.raises(StopIteration):
        kernels.main(
            device="cpu", rows=4, size=32, model="test_resnet", only="mix", once=False, json=tmp_path / "k.json"
        )
    record = json.loads((tmp_path / "k.json").read_text())
    assert record["finished"] is False
    assert [result["us"] for result in record["results"]] == pytest.approx([1e3, 2e3])


def test_steps_out_of_memory_are_left_out_but_for_the_one_that_all_are_compared_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors: dict[str, Exception] = {
        "rsbdali-nomix": DeviceError("out of GPU memory in a pass of 4 images"),
        "timm": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …"),
        "timm-nomix": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    }

    def build(self: Entry, *_: Any) -> Any:
        if self.name in errors:
            raise errors[self.name]
        return lambda: 4

    monkeypatch.setattr(Entry, "build", build)
    said: list[str] = []
    race = Race(step_recipe(SMALL, 4), CPU, said.append)
    for entry in step_race.entries(("timm",)):
        race.start(entry)
    assert list(race.steps) == ["rsbdali"]
    assert race.skipped == dict.fromkeys(errors, "out of GPU memory")
    assert [line for line in said if "left out" in line] == [
        f"{name} is left out: out of GPU memory" for name in errors
    ]
    errors["rsbdali"] = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(DeviceError, match=r"^out of GPU memory at 4 rows: try a smaller --batch-size$"):
        race.start(Entry(team="rsbdali", mixed=True))
    errors["rsbdali-nomix"] = RuntimeError("a shape is wrong")  # a fault of ours is no reason to go on
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        race.start(Entry(team="rsbdali", mixed=False))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.", True),
        ("RuntimeError: CUDA error: out of memory", True),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("nvJPEG error (5): NVJPEG_STATUS_ALLOCATOR_FAILURE", True),
        ("Critical error in pipeline: Can't allocate 1073741824 bytes on device 0.", True),
        ("CUDA runtime API error cudaErrorMemoryAllocation (2): out of memory", True),
        ("rsbdali.errors.DeviceError: out of GPU memory in a pass of 512 images", True),
        ("Can't allocate 1073741824 bytes on host.", False),
        ("DeviceError: torch sees no GPU here", False),
        ("an image that takes 3 MB of memory", False),
    ],
)
def test_what_libraries_say_without_memory(text: str, expected: bool) -> None:
    assert out_of_memory(text) is expected


def spec(kind: str) -> FeedSpec:
    return FeedSpec(kind=kind, root="", cache_dir="", recipe={}, batch_size=4, workers=1, device="cpu")


def test_a_contestant_without_memory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text(
        "#!/bin/sh\nread spec\n"
        "printf 'torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.\\nin a thread\\n' >&2; exit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(candidate.sys, "executable", str(program))
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        assert start([spec("timm"), spec("dali-exact")], skipped, stack, lambda _: None) == []
        assert skipped == dict.fromkeys(("timm", "dali-exact"), "out of GPU memory")
        with pytest.raises(CandidateFailed, match=r"^rsbdali: out of GPU memory$"):
            start([spec("rsbdali")], skipped, stack, lambda _: None)


def test_contestants_start_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for name in ("__init__", "ready", "close"):
        monkeypatch.setattr(Candidate, name, lambda self, *_, name=name: seen.append(name))
    monkeypatch.setattr(Candidate, "name", "timm", raising=False)
    with ExitStack() as stack:
        assert len(start([spec("timm"), spec("rsbdali")], {}, stack, lambda _: None)) == 2
    assert seen == ["__init__", "__init__", "ready", "ready", "close", "close"]


def test_a_contestant_ends_with_its_bench() -> None:
    """What its program begins with: the kernel ends it when the bench is killed, wherever it is by then."""
    child = "; ".join([*candidate.PROGRAM.split("; ")[:2], "print(1, flush=True)", "import time", "time.sleep(60)"])
    parent = f"import os, subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {child!r}]); child.wait()"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as bench_process:
        assert bench_process.stdout is not None
        assert bench_process.stdout.readline() == b"1\n"
        bench_process.kill()
        assert bench_process.stdout.read() == b""  # the end of it: nobody is left to write
