"""The acceptance run: its pieces on the CPU, the table from whatever records there are, and the script itself, dry."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rsbdali.bench import floors, gpu_share, kernels
from rsbdali.bench.race.kernel_cases import Case, cases, mix_rows
from rsbdali.bench.race.synthetic import step_recipe
from rsbdali.bench.summary import main, rows
from rsbdali.recipe import Recipe

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
SMALL = Recipe.load("a3", {"model": "test_resnet", "img_size": "32", "test_img_size": "32"})


def test_every_kernel_has_a_case_that_runs() -> None:
    found = [(case.name, case.dtype) for case in cases(SMALL, 4, CPU) if case.calls[0]() is not NotImplemented]
    assert len(found) == len(set(found)) == 3 * 3 + 3 + 2 + 3
    for word in ("mix, cutmix", "BCE", "lamb on", "timm's", "warp, bicubic", "equalize"):
        assert any(word in name for name, _ in found)


def test_bytes_by_hand() -> None:
    sizes = {f"{case.name} {case.dtype}": case.bytes for case in cases(SMALL, 4, CPU)}
    pixels = 4 * 32 * 32
    assert sizes["mix, plain float16"] == pixels * (3 + 2 * 3)
    assert sizes["mix, mixup float32"] == pixels * (2 * 3 + 4 * 3)
    assert sizes["mix, cutmix bfloat16"] == pixels * (3 + 2 * 3)
    assert sizes["BCE, forward and backward float16"] == 2 * 2 * 4 * 1000
    assert sizes["equalize uint8"] == pixels * 6


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
    by_name = {work.name: work for work in floors.works()}
    v100 = floors.GPUS[0]
    mix = by_name["mix, mixup, 512 × 160 px"]
    assert mix.floor_s(v100) == pytest.approx(512 * 160 * 160 * 3 * (2 + 2) / 0.9e12)
    assert by_name["LAMB, ResNet-50"].bytes == 7 * 4 * 25_557_032
    step = by_name["ResNet-50 forward and backward, 512 × 224 px"]
    assert step.floor_s(v100) == pytest.approx(512 * 6 * 4.09e9 / 125e12, rel=0.02)
    assert floors.table().count("\n") == 1 + len(by_name)


def test_gpu_share_runs_beside_a_step(image_tree: Callable[..., Path]) -> None:
    record = gpu_share.measure(step_recipe(SMALL, 4), image_tree(), CPU, steps=1, rounds=1, workers=1)
    assert [rung["name"] for rung in record["rungs"]] == list(gpu_share.RUNGS)
    assert all(rung["step_ms_beside"] > 0 and rung["gpu_us"] is None for rung in record["rungs"])
    json.dumps(record)


def test_what_randaugment_takes() -> None:
    rungs = [
        {"name": "crop+resize", "gpu_us": 10.0, "step_ms_alone": 40.0, "step_ms_beside": 45.0},
        {"name": "RandAugment", "gpu_us": 14.0, "step_ms_alone": 40.0, "step_ms_beside": 48.0},
    ]
    cost = gpu_share.randaugment_cost(rungs, 500)
    assert cost == pytest.approx({"gpu_ms": 2.0, "step_ms": 3.0, "share_of_step": 0.05})


def step_record(**rates: float) -> dict[str, object]:
    results = [
        {"name": name.replace("_", "-"), "images_per_s": {"median": rate}, "utilisation": 0.4}
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
                    "ratio_to": {"timm": 9.0},
                    "config": {"workers": 16},
                },
                "gpu_share": {"randaugment": {"share_of_step": 0.03}},
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
    assert said("step, float16, by timm's with its Mixup") == ("not run", "")


def test_summary_of_nothing_and_of_a_run_that_was_cut_off(tmp_path: Path) -> None:
    text = main(tmp_path / "none", tmp_path / "none")
    assert text.count("not run") == len(text.splitlines()) - 1
    run = tmp_path / "runs" / "float16"
    run.mkdir(parents=True)
    moment = {"kind": "step", "images_per_s": 123.0, "wait_share": 0.5}
    (run / "metrics.jsonl").write_text(json.dumps(moment) + "\n")
    text = main(tmp_path, tmp_path / "runs", tmp_path / "all.json")
    assert "123 images/s" in text
    assert json.loads((tmp_path / "all.json").read_text()) == {"train-float16": moment}


def test_the_script_dry(image_tree: Callable[..., Path], tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu.sh"), str(tmp_path / "out"), str(image_tree()), "--device", "cpu"],
        env={**os.environ, "PYTHON": sys.executable, "STEPS": "kernels sanitizer", "BUDGET": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert "kernels: status 0" in summary, (tmp_path / "out" / "bench.txt").read_text()
    assert "sanitizer: not run" in summary
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"summary.txt", "bench.txt", "records.json"}
    record = json.loads((tmp_path / "out" / "records.json").read_text())["kernels"]
    lamb = next(r for r in record["results"] if r["name"] == "lamb on test_resnet")
    assert f"{lamb['times_floor']:.2f} ×" in summary
    assert "training on photographs, bfloat16" in summary
