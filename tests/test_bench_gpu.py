"""The acceptance run: its pieces on the CPU, the table from whatever records there are, and the script itself, dry."""

import json
import os
import signal
import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.common import CPU, TINY, Tree
from rsbdali.bench import gpu_share, kernels, roofline, same_plan
from rsbdali.bench.graph import operators
from rsbdali.bench.measure.heartbeat import Heartbeat
from rsbdali.bench.race import kernel_cases, stages
from rsbdali.bench.race.kernel_cases import GROUPS, Case, cases, mix_rows
from rsbdali.bench.race.synthetic import step_recipe
from rsbdali.bench.summary import main, rows
from rsbdali.pipelines.executor import DecodedBatch
from rsbdali.recipe import Recipe

ROOT = Path(__file__).parents[1]
SMALL = Recipe.load("a3", TINY)


def test_every_kernel_has_a_case_that_runs() -> None:
    found = [(case.name, case.dtype) for case in cases(SMALL, 4, CPU) if case.calls[0]() is not NotImplemented]
    assert len(found) == len(set(found)) == 1 + 3 * 3 + 3 + 2 + 3
    for word in ("RandAugment", "mix, cutmix", "BCE", "lamb on", "timm's", "warp, bicubic", "equalize"):
        assert any(word in name for name, _ in found)


def test_bytes_by_hand() -> None:
    sizes = {f"{case.name} {case.dtype}": case.bytes for case in cases(SMALL, 4, CPU)}
    pixels = 4 * 32 * 32
    assert sizes["mix, plain float16"] == pixels * (3 + 2 * 3)
    assert sizes["mix, mixup float32"] == pixels * (2 * 3 + 4 * 3)
    assert sizes["mix, cutmix bfloat16"] == pixels * (3 + 2 * 3)
    assert sizes["BCE, forward and backward float16"] == 2 * 2 * 4 * 1000
    assert sizes["equalize uint8"] == sizes["RandAugment and flip uint8"] == pixels * 6


def test_one_group_of_ops_alone() -> None:
    assert [case.name for case in cases(SMALL, 4, CPU, "randaugment")] == ["RandAugment and flip"]
    assert {case.name for case in cases(SMALL, 4, CPU, "warp")} == {"warp, bilinear", "warp, bicubic", "equalize"}
    assert set(GROUPS) == {"randaugment", "mix", "bce", "lamb", "warp"}


def test_randaugment_that_differs_from_pillow_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = next(cases(SMALL, 100, CPU, "randaugment"))
    assert case.wrong() is None
    right = kernel_cases.randaugment
    checked: list[int] = []

    def wrong(images_NHWC: torch.Tensor, *plan_rows: Any, **more: Any) -> torch.Tensor:
        checked.append(len(images_NHWC))
        out_NHWC = right(images_NHWC, *plan_rows, **more)
        out_NHWC[[1, 5], -1, -1, 2] ^= 1  # a level of one pixel
        return out_NHWC

    monkeypatch.setattr(kernel_cases, "randaugment", wrong)
    monkeypatch.setattr(kernels, "copy_bandwidth", lambda _: 1e9)
    said = case.wrong()
    assert said is not None
    assert said.startswith("2 of 64 rows differ from Pillow's, with ")
    assert checked == [64]
    options = {"device": "cpu", "rows": 8, "size": 32, "model": "test_resnet", "only": "randaugment"}
    assert kernels.main(**options, once=False, json=tmp_path / "k.json") == 1
    record = json.loads((tmp_path / "k.json").read_text())
    assert record["results"] == []
    assert record["wrong"]["RandAugment and flip"].startswith("2 of 8 rows differ")
    assert kernels.main(**options, once=True, json=None) == 1
    assert capsys.readouterr().out.count("WRONG") == 2
    monkeypatch.setattr(kernel_cases, "randaugment", right)
    assert kernels.main(**options, once=True, json=None) == 0


def test_mix_rows_are_what_they_are_called() -> None:
    partner_N, lam_N, box_N4 = mix_rows("cutmix", 4, 32, 64)
    assert partner_N.tolist() == [3, 2, 1, 0]
    y0, y1, x0, x1 = box_N4[0]
    assert (y1 - y0) * (x1 - x0) == pytest.approx((1 - lam_N[0]) * 32 * 64)  # timm's λ is the share that is left
    assert not mix_rows("mixup", 4, 32, 32)[2].any()
    assert np.all(mix_rows("plain", 4, 32, 32)[1] == 1)


def test_against_floor() -> None:
    row = kernels.against_floor(Case(name="x", dtype="float16", bytes=3_000, calls=[]), 2e-6, 3e9)
    assert (row["us"], row["floor_us"]) == pytest.approx((2.0, 1.0))
    assert (row["times_floor"], row["share_of_copy"]) == pytest.approx((2.0, 0.5))


def test_floors_by_hand() -> None:
    by_name = {work.name: work for work in roofline.works()}
    v100 = roofline.GPUS[0]
    mix = by_name["mix, mixup, 512 × 160 px"]
    assert mix.floor_s(v100) == pytest.approx(512 * 160 * 160 * 3 * (2 + 2) / 0.9e12)
    assert by_name["LAMB, ResNet-50"].bytes == 7 * 4 * 25_557_032
    step = by_name["ResNet-50 forward and backward, 512 × 224 px"]
    assert step.floor_s(v100) == pytest.approx(512 * 6 * 4.09e9 / 125e12, rel=0.02)
    assert by_name["RandAugment and flip, 512 × 160 px"].bytes == 512 * 160 * 160 * 6
    h100 = next(gpu for gpu in roofline.GPUS if gpu.name == "H100 SXM")
    assert by_name["LAMB, ResNet-50"].floor_s(h100) == pytest.approx(7 * 4 * 25_557_032 / 3.35e12)
    assert step.floor_s(h100) == pytest.approx(512 * 6 * 4.09e9 / 989e12, rel=0.02)
    assert roofline.table().count("\n") == 1 + len(by_name)


def test_gpu_share_runs_beside_a_step(image_tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = gpu_share.TrainLoader

    def short_of_memory(*args: Any, decode: str, **more: Any) -> Any:
        if decode == "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return loader(*args, decode=decode, **more)

    monkeypatch.setattr(gpu_share, "TrainLoader", short_of_memory)
    kept: list[dict[str, Any]] = []
    options: dict[str, Any] = {"seconds": 1e-9, "rounds": 2, "workers": 1}
    record = gpu_share.measure(
        step_recipe(SMALL, 4), image_tree(), CPU, **options, write=lambda r: kept.append(json.loads(json.dumps(r)))
    )
    names = [kind.name for kind in gpu_share.KINDS]
    assert names == ["graph", "graph, no RandAugment", "cpu"]
    assert [loader["name"] for loader in record["loaders"]] == names[:2]
    assert record["skipped"] == {"cpu": "out of GPU memory"}
    for figures in record["loaders"]:
        assert figures["step_ms_beside"] > 0
        assert figures["longest_gap_ms_beside"] > 0
        assert figures["gpu_us"] is None
    assert [(len(r["loaders"]), r["finished"]) for r in kept] == [(1, False), (1, False), (2, False), (2, False)]
    assert record["finished"]
    assert record["randaugment"]["gpu_ms"] is None


def test_what_randaugment_takes() -> None:
    loaders = [
        {"name": "graph", "gpu_us": 14.0, "step_ms_alone": 40.0, "step_ms_beside": 48.0},
        {"name": "graph, no RandAugment", "gpu_us": 10.0, "step_ms_alone": 40.0, "step_ms_beside": 45.0},
    ]
    cost = gpu_share.randaugment_cost(loaders, 500)
    assert cost == pytest.approx({"gpu_ms": 2.0, "step_ms": 3.0, "share_of_step": 0.05})
    assert gpu_share.randaugment_cost(loaders[:1], 500) is None


def test_the_heartbeat_keeps_the_longest_gap() -> None:
    heart = Heartbeat()
    for now_s in (10.0, 10.001, 10.061, 10.062):
        heart.note(now_s)
    assert heart.longest_s == pytest.approx(0.06)
    with Heartbeat() as beating:
        assert beating._thread.is_alive()
    assert not beating._thread.is_alive()


class Repeats:
    """An executor whose batches are alike, but for one row of the batch with a certain number."""

    def __init__(self, odd: int | None) -> None:
        self.odd, self.number, self.plans = odd, 0, list[int]()

    def submit(self, plan: int) -> None:
        self.plans.append(plan)

    def collect(self) -> DecodedBatch:
        images_NHWC = torch.full((4, 2, 2, 3), self.plans.pop(0), dtype=torch.uint8)
        images_NHWC[2] += self.number == self.odd
        self.number += 1
        return DecodedBatch(images_NHWC, {})


def test_a_plan_made_again_is_compared_with_its_first() -> None:
    steps: list[int] = []
    step: Any = lambda: steps.append(1)  # noqa: E731
    plans: Any = [10, 20]
    executor: Any = Repeats(None)
    assert same_plan.unlike_first(executor, plans, 3, step) == [[0, 0], [0, 0]]
    assert len(steps) == 6
    executor = Repeats(3)
    unlike = same_plan.unlike_first(executor, plans, 3, step)
    assert unlike == [[0, 0], [1, 0]]
    said = same_plan.verdict({"unlike_rows": unlike, "config": {"decode": "graph", "batch_size": 4}})
    assert said.splitlines() == [
        "plan 1, made 3 times by graph: all equal",
        "plan 2, made 3 times by graph: 1 are NOT like the first, in up to 1 of 4 rows",
    ]


def test_the_graph_makes_a_plan_again(image_tree: Tree) -> None:
    record = same_plan.measure(step_recipe(SMALL, 4), image_tree(), CPU, decode="graph", times=2, workers=1)
    assert record["unlike_rows"] == [[0], [0]]
    assert record["equal"]


def test_decode_modes_ask_the_decoder_for_what_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, float | None, bool | None]] = []
    decode = stages.decode

    def spy(encoded: Any, *, device: str, settings: dict[str, Any]) -> Any:
        asked.append((device, settings.get("hw_decoder_load"), settings.get("jpeg_fancy_upsampling")))
        return decode(encoded, device=device, settings=settings)

    monkeypatch.setattr(stages, "decode", spy)
    index: Any = SimpleNamespace(width_N=np.full(5, 500), height_N=np.full(5, 375))
    gpu = torch.device("cuda:0")
    found = {name: operators(stages.decode_graph(stages.mode_of(name, gpu), index)) for name in stages.GPU_MODES}
    loads = (0.0, 0.3, 0.65, 0.9, 1.0)
    assert asked == [*(("gpu", load, True) for load in loads), ("gpu", 0.0, False), ("gpu", 0.9, False)]
    assert [name for name, ops in found.items() if ops["decoders__ImageSlice"]] == ["decode-roi"]
    assert list(found)[:5] == ["decode-hw0", "decode-hw30", "decode-hw65", "decode-hw90", "decode-hw100"]
    assert stages.mode_of("decode", gpu) == stages.Mode(backend="gpu")
    assert stages.mode_of("decode", CPU) == stages.mode_of("decode-cpu", gpu) == stages.Mode(backend="cpu", roi=True)


def step_record(**rates: float) -> dict[str, object]:
    results = [
        {"name": name.replace("_", "-"), "images_per_s": {"median": rate}, "utilization": 0.4}
        for name, rate in rates.items()
    ]
    return {"results": results, "ratio_to": {"timm": 1.4, "timm-nomix": 1.2}}


def test_summary_of_all_records() -> None:
    mix = {"name": "mix, plain", "dtype": "float16", "share_of_copy": 0.85}
    lamb = {"name": "lamb on resnet50", "times_floor": 2.5}
    found = {
        row.name: row
        for row in rows(
            {
                "step-bfloat16": step_record(rsbdali=5000, rsbdali_nomix=5200, rsbdali_compile=6000, timm_compile=5000),
                "kernels": {"results": [mix, mix | {"share_of_copy": 0.82, "dtype": "float32"}, lamb]},
                "train-bfloat16": {"images_per_s": 4900, "wait_share": 0.01},
                "loader": {
                    "results": [{"name": "rsbdali", "images_per_s": {"median": 7800}}],
                    "ratio_to": {"timm": 9.0, "dali-exact": 1.5},
                    "config": {"workers": 16},
                },
                "gpu_share": {
                    "loaders": [{"name": "graph", "slower": 1.02, "longest_gap_ms_beside": 7.4}],
                    "randaugment": {"share_of_step": 0.03},
                },
                "randaugment": {
                    "results": [{"us": 210.0}],
                    "wrong": {},
                    "config": {"rows": 512, "train_size": [160, 160]},
                },
                "modes": {
                    "results": [
                        {"name": f"decode-{name}", "images_per_s": {"median": rate}}
                        for name, rate in (("hw0", 5e3), ("hw90", 9e3), ("cpu", 7e3))
                    ]
                },
                "same_plan": {"equal": False},
            }
        )
    }

    def said(name: str) -> tuple[str, str]:
        return found[name].text, found[name].verdict

    assert said("step, bfloat16, by timm's with its Mixup") == ("1.40 ×", "met")
    assert said("step, bfloat16, both compiled, by timm's with its Mixup") == ("1.20 ×", "")
    assert said("mix, share of copy bandwidth, the least (plain, float32)") == ("82.0%", "met")
    assert said("LAMB, by its floor") == ("2.50 ×", "missed")
    assert said("training, bfloat16, by the synthetic step") == ("98.0%", "met")
    assert said("loader alone, by the synthetic step") == ("1.50 ×", "met")
    assert said("loader, by timm's, 16 threads") == ("9.00 ×", "")
    assert said("RandAugment, GPU time by the step's") == ("3.0%", "")
    assert said("loader, by that with RandAugment in DALI (dali-exact)") == ("1.50 ×", "")
    assert said("step, float16, by timm's with its Mixup") == ("not run", "")
    assert said("RandAugment equals Pillow") == ("yes", "met")
    assert said("RandAugment, 512 × 160 px") == ("0.21 ms", "")
    assert said("decoding alone, the fastest (hw90)") == ("9,000 images/s", "")
    assert said("step beside the loader (graph), by alone") == ("1.02 ×", "")
    assert said("step beside the loader (cpu), by alone") == ("not run", "")
    assert said("longest wait for Python's lock (graph)") == ("7 ms", "")
    assert said("one plan made again under load, equal") == ("NO", "missed")


def test_summary_begins_with_the_native_type() -> None:
    def first(capability: str) -> str:
        machine = {"gpu": [{"capability": capability}]}
        found = rows({"kernels": {"machine": machine, "results": []}})
        return next(row.name for row in found if row.name.startswith("step, "))

    assert [first(capability) for capability in ("7.0", "7.5", "8.0", "9.0")] == [
        "step, float16",
        "step, float16",
        "step, bfloat16",
        "step, bfloat16",
    ]


def test_summary_says_what_is_missing(tmp_path: Path) -> None:
    records = {
        "step-float16": step_record(rsbdali=5) | {"finished": False, "skipped": {"timm": "out of GPU memory"}},
        "randaugment": {
            "finished": True,
            "results": [],
            "wrong": {"RandAugment and flip": "3 of 64 rows differ"},
            "config": {"rows": 8, "train_size": [32, 32]},
        },
    }
    for name, record in records.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    lines = main(tmp_path, tmp_path / "none").splitlines()
    assert lines[-3:] == [
        "randaugment: RandAugment and flip is WRONG and was not timed: 3 of 64 rows differ",
        "step-float16: cut off, its figures are of the rounds before",
        "step-float16: timm did not take part: out of GPU memory",
    ]
    assert any(line.split() == ["RandAugment", "equals", "Pillow", "NO", "≥", "1", "missed"] for line in lines)


def test_summary_of_nothing_and_of_a_run_that_was_cut_off(tmp_path: Path) -> None:
    text = main(tmp_path / "none", tmp_path / "none")
    assert text.count("not run") == len(text.splitlines()) - 1
    run = tmp_path / "runs" / "float16"
    run.mkdir(parents=True)
    moment = {"kind": "step", "images_per_s": 123.0, "wait_share": 0.5}
    (run / "metrics.jsonl").write_text(json.dumps(moment) + '\n{"kind": "st')  # killed while it wrote
    text = main(tmp_path, tmp_path / "runs", tmp_path / "all.json")
    assert "123 images/s" in text
    assert json.loads((tmp_path / "all.json").read_text()) == {"train-float16": moment}


def gpu_sh(out: Path, data: Path, *words: str, **environment: str) -> list[str]:
    return [
        "env",
        *(f"{name}={value}" for name, value in environment.items()),
        "bash",
        str(SCRIPT),
        str(out),
        str(data),
        *words,
    ]


SCRIPT = ROOT / "bench" / "gpu.sh"


@pytest.fixture(scope="session")
def without_rsbdali(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has what rsbdali needs, but not rsbdali."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    (site,) = (folder / "lib").glob("python*/site-packages")
    # folders named in a .pth file are searched, but their own .pth files are not read: no editable install takes effect
    (site / "all.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return folder / "bin" / "python"


def test_the_script_dry_where_rsbdali_is_not_installed(image_tree: Tree, tmp_path: Path, without_rsbdali: Path) -> None:
    alone = subprocess.run([without_rsbdali, "-c", "import rsbdali"], capture_output=True, cwd=tmp_path, check=False)
    assert b"No module named 'rsbdali'" in alone.stderr
    out = tmp_path / "out"
    done = subprocess.run(
        gpu_sh(out, image_tree(), "--device", "cpu", PYTHON=str(without_rsbdali), STEPS="parity randaugment"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = (out / "summary.txt").read_text()
    for step in ("parity", "randaugment"):  # one in the repository, one outside
        assert f"{step}: status 0" in summary, (out / "checks.txt").read_text() + (out / "bench.txt").read_text()
    assert {path.name for path in out.iterdir()} == {"summary.txt", "checks.txt", "bench.txt", "records.json"}
    (result,) = json.loads((out / "records.json").read_text())["randaugment"]["results"]
    assert f"{result['us'] / 1e3:.2f} ms" in summary
    assert "training on photographs, bfloat16" in summary


def pretend(path: Path, script: str) -> str:
    """A stand-in for the interpreter: a shell script. What it does not end itself, the real one does."""
    path.write_text(f'#!/bin/sh\n{script}\nexec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(("capability", "dtypes"), [("7", ["float16", "bfloat16"]), ("9", ["bfloat16", "float16"])])
def test_the_order_of_the_steps_on_a_gpu(tmp_path: Path, capability: str, dtypes: list[str]) -> None:
    (tmp_path / "data").mkdir()
    python = pretend(
        tmp_path / "python",
        f'case "$*" in -c*) echo {capability}; exit;; *bench.summary*) ;; *) exit 3;; esac',
    )
    (tmp_path / "compute-sanitizer").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "compute-sanitizer").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        gpu_sh(tmp_path / "out", tmp_path / "data", PYTHON=python, PATH=path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ends = [line.split(": ")[:2] for line in done.stdout.splitlines() if ": status " in line]
    first, second = dtypes
    assert [name for name, _ in ends] == [
        *("doctor", "parity", "randaugment", "modes", "share", "same", "sanitizer"),
        *(f"step {first}", f"step {second}", "loader", "train material", f"train {first}", f"train {second}"),
        *("kernels", "stages", "repeats", "tests"),
    ]
    assert {end.split(",")[0] for _, end in ends} == {"status 3", "status 9"}
    calls = [
        line for file in ("bench.txt", "checks.txt") for line in (tmp_path / "out" / file).read_text().splitlines()
    ]
    steps = [call for call in calls if "bench-step" in call]
    assert [f"amp_dtype={dtype}" in step for dtype, step in zip(dtypes, steps, strict=True)] == [True, True]
    assert ["--torch-compile default --cuda-graph" in step for step in steps] == [True, False]
    parity, rest = (call for call in calls if " -m pytest " in call)
    for call in (parity, rest):
        assert "-o filterwarnings=default -m gpu" in call
    tests = parity.split("-m gpu ")[1].split()
    assert {"test_parity_graph.py", "test_randaugment_kernels.py", "test_bce.py"} < {Path(test).name for test in tests}
    assert len(tests) == len(set(tests))
    assert all(Path(test).exists() for test in tests)
    assert rest.split("-m gpu ")[1].split() == [str(ROOT / "tests"), *(f"--ignore={test}" for test in tests)]
    assert "--rows 64" in next(call for call in calls if "compute-sanitizer" in call)


def test_a_script_that_is_ended_gathers_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "begun")
    record = '{"kind": "kernels", "finished": false, "results": [{"us": 5000}], "wrong": {}, "config": CONFIG}'
    config = '{"rows": 8, "train_size": [32, 32]}'
    python = pretend(
        tmp_path / "python",
        f"""case "$*" in *bench.kernels*)
            for json; do :; done  # its last argument
            echo '{record.replace("CONFIG", config)}' >"$json"; echo >"{tmp_path}/begun"; exec sleep 60;; esac""",
    )
    words = gpu_sh(tmp_path / "out", tmp_path / "data", "--device", "cpu", PYTHON=python, STEPS="randaugment")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as script:
        (tmp_path / "begun").read_text()  # until the step is under way
        script.send_signal(signal.SIGTERM)
        text, _ = script.communicate(timeout=50)
    assert script.returncode == 143
    assert "5.00 ms" in text
    assert "randaugment: cut off" in text
    assert list(json.loads((tmp_path / "out" / "records.json").read_text())) == ["randaugment"]
