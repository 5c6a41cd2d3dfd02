"""bench-step: both steps run, the record says what was measured, and its arithmetic is right. No timing is asserted."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.common import CPU, TINY
from rsbdali.bench.measure import phases
from rsbdali.bench.measure.timing import copy_bandwidth, matmul_peak, seconds_of
from rsbdali.bench.race.flops import flops_per_image, utilization
from rsbdali.bench.race.our_step import OurStep
from rsbdali.bench.race.step_race import Entry, Race, entries
from rsbdali.bench.race.synthetic import NUM_CLASSES, Synthetic, step_recipe
from rsbdali.bench.race.timm_step import TimmStep
from rsbdali.bench.step import StepOptions, run
from rsbdali.errors import DeviceError, RecipeError
from rsbdali.recipe import Recipe
from rsbdali.training.acceleration import Acceleration
from rsbdali.training.model import create_model


def recipe(**values: str) -> Recipe:
    return step_recipe(Recipe.load("a3", {**TINY, **values}), 4)


def test_the_command_prints_both_and_writes_a_record(tmp_path: Path) -> None:
    overrides = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    file = tmp_path / "out" / "step.json"
    words = ["bench-step", "--recipe", "a3", "--device", "cpu", "--peers", "timm", "--batch-size", "4", "--rounds", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "rsbdali", *words, "--seconds", "0.01", "--json", str(file), *overrides],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stderr
    for word in ("rsbdali", "timm-nomix", "its Mixup on the batch", "GFLOP", "backward"):
        assert word in done.stdout
    record = json.loads(file.read_text())
    assert [r["name"] for r in record["results"]] == ["rsbdali", "rsbdali-nomix", "timm", "timm-nomix"]
    assert record["skipped"] == {}
    assert record["ratio_to"].keys() == {"rsbdali-nomix", "timm", "timm-nomix"}
    assert record["cpu_ratio_to"].keys() <= record["ratio_to"].keys()
    assert record["verdict"].startswith("rsbdali trains ")
    assert "; rsbdali-nomix trains " in record["verdict"]
    assert record["verdict"] in " ".join(done.stdout.split())
    assert record["warning"] in " ".join(done.stdout.split())
    assert (record["config"]["batch_size"], record["config"]["dtype"]) == (4, "float32")
    assert {"cpu", "versions", "commit", "command"} <= record["machine"].keys()
    peak = record["ceiling"]["matmul_flops_per_s"]
    for r in record["results"]:
        assert len(r["rounds"]) == 2
        assert 0 <= r["others_share"] <= 1
        assert r["load"] >= 0
        assert r["utilization"] == pytest.approx(
            record["ceiling"]["flops_per_image"] * r["images_per_s"]["median"] / peak
        )
        mixes = [] if "nomix" in r["name"] else ["mix"]
        assert list(r["parts_ms"]) == [*mixes, "forward", "loss", "backward", "optimizer"]


@pytest.mark.parametrize("values", [{}, {"amp_dtype": "float16"}, {"bce_loss": "false", "bce_target_thresh": "null"}])
@pytest.mark.parametrize("kind", [OurStep, TimmStep])
def test_a_step_trains_and_marks_its_parts_in_order(kind: type[OurStep | TimmStep], values: dict[str, str]) -> None:
    step = kind(recipe(**values, clip_grad="1"), CPU)
    before = [p.detach().clone() for p in step.model.parameters()]
    marks: list[str] = []
    with step.marked(marks.append):
        assert step() == 4
    assert marks == list(phases.PARTS)
    assert step() == 4
    assert len(marks) == len(phases.PARTS)  # the hooks are gone
    assert any(not torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True))


def test_both_steps_descend_alike() -> None:
    """On one batch with one λ for all, ours and timm's leave the same weights."""
    same = recipe(mixup="0", cutmix="0", amp_dtype="float32", drop_path="0")
    ours, timms = OurStep(same, CPU, mixed=False), TimmStep(same, CPU, mixed=False)
    batch = ours.batch
    assert batch is not None
    timms.use(batch.images, torch.nn.functional.one_hot(batch.label_N, NUM_CLASSES).float())
    for _ in range(3):
        ours()
        timms()
    for a, b in zip(ours.model.parameters(), timms.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # fused kernels round otherwise than timm's


def test_synthetic_batches_are_mixed_as_the_plans_say() -> None:
    data = Synthetic(recipe(), CPU, torch.float32)
    kinds = {bool(batch.plan.box_N4.any()) for batch in (data.mixed() for _ in range(8))}
    assert kinds == {False, True}  # mixup and CutMix
    batch = data.mixed()
    assert batch.images.shape == (4, 3, 32, 32)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.partner_label_N, torch.from_numpy(data.label_N).flip(0))


def test_flops_are_those_of_a_real_pass() -> None:
    chosen = recipe()
    model, images = create_model(chosen, NUM_CLASSES).train(), torch.randn(2, 3, 32, 32)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    assert flops_per_image(chosen) == counter.get_total_flops() // 2
    # the paper's ResNet-50: 4.1 G multiply-adds forward at 224, twice that backward but for the first layer's input
    full = flops_per_image(step_recipe(Recipe.load("a1"), 4))
    assert full == pytest.approx(4.09e9 * 2 * 3, rel=0.02)
    assert utilization(2e9, 500, 4e12) == 0.25


def test_parts_are_medians_of_the_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.chain.from_iterable([[0, 1, 3], [10, 12, 13], [20, 29, 32]])
    monkeypatch.setattr(phases.time, "perf_counter", lambda: next(ticks))

    class Step:
        def __call__(self) -> int:
            self.mark("forward")
            self.mark("backward")
            return 1

        def marked(self, mark: phases.Mark) -> "Step":
            self.mark = mark
            return self

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    assert phases.measure_parts(Step(), CPU, 3) == {"forward": 2000.0, "backward": 2000.0}


def test_calls_take_turns_and_ceilings_are_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    seconds_of([lambda: made.append(0), lambda: made.append(1)], CPU, repeats=3)
    assert made == [0, 1, 0, 1, 0]
    monkeypatch.setattr("rsbdali.bench.measure.timing.COPY_BYTES", {"cpu": 1 << 16})
    monkeypatch.setattr("rsbdali.bench.measure.timing.MATMUL_SIDE", {"cpu": 16})
    assert copy_bandwidth(CPU) > 0
    assert matmul_peak(CPU, torch.float32) > 0


def test_who_takes_part() -> None:
    assert [e.name for e in entries(())] == ["rsbdali", "rsbdali-nomix"]
    switched = entries(("timm",), Acceleration(torch_compile="default", cuda_graph=True))
    assert [e.name for e in switched][4:] == [
        "rsbdali-compile",
        "rsbdali-nomix-compile",
        "timm-compile",
        "timm-nomix-compile",
        "rsbdali-graph",
        "rsbdali-compile-graph",
    ]
    assert switched[-1].note.endswith("torch.compile default; as CUDA graphs")


def test_a_peer_that_fails_is_skipped_and_ours_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel\nat line 3")

    monkeypatch.setattr(Entry, "build", fail)
    race = Race(recipe(), CPU, lambda _: None)
    race.start(Entry(team="timm", mixed=True))
    assert (race.skipped, race.steps) == ({"timm": "no kernel"}, {})
    with pytest.raises(RuntimeError):
        race.start(Entry(team="rsbdali", mixed=True))


def test_mistakes_are_one_line() -> None:
    chosen = Recipe.load("a3", TINY)
    with pytest.raises(RecipeError, match="--peers tim: unknown; known are timm"):
        run(StepOptions(recipe=chosen, device="cpu", peers=("tim",)))
    with pytest.raises(DeviceError, match="--cuda-graph needs a GPU"):
        run(StepOptions(recipe=chosen, device="cpu", acceleration=Acceleration(cuda_graph=True)))
    with pytest.raises(RecipeError, match="must be even"):
        run(StepOptions(recipe=chosen, device="cpu", batch_size=3))
