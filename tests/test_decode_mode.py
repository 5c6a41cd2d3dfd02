"""Where images are decoded: what auto chooses, what is refused, and what a resumed run takes."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from rsbdali.distributed.world import World
from rsbdali.errors import DeviceError, RecipeError
from rsbdali.loader import decode_mode
from rsbdali.loader.decode_mode import (
    choose_decode,
    create_eval_executor,
    create_executor,
    evaluation_decode,
    resumed_decode,
)
from rsbdali.pipelines.executor import DecodedBatch, ImageSource
from rsbdali.plan.planner import BatchPlan
from rsbdali.recipe import Recipe

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
RECIPE = Recipe.load("a3", {"global_batch_size": 8, "mix_groups": 1})
INDEX = cast("ImageSource", SimpleNamespace(width_N=np.full(40, 64, np.int32), height_N=np.full(40, 64, np.int32)))
COMPILER = "there is no C compiler"


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """`compiler(missing)`: what Triton lacks."""

    def lack(missing: str | None) -> None:
        monkeypatch.setattr(decode_mode, "missing_compiler", lambda: missing)

    lack(None)
    return lack


class Slow:
    """An executor whose batches take a time of their own, by a clock that it moves on."""

    rows, pixels = 8, "fake"

    def __init__(self, clock: "Clock", seconds: float) -> None:
        self._clock, self._seconds, self.closed, self.made = clock, seconds, False, 0

    def submit(self, plan: BatchPlan) -> None:
        assert len(plan) == 8

    def collect(self) -> DecodedBatch:
        self.made += 1
        self._clock.now += self._seconds
        return DecodedBatch(torch.empty(0), {})

    def close(self) -> None:
        self.closed = True


class Clock:
    """Seconds that only work moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def choose(decode: str, device: torch.device, world: World | None = None, clock: Any = None) -> str:
    more = {} if clock is None else {"clock": clock}
    return choose_decode(decode, INDEX, RECIPE, device=device, num_threads=1, world=world or World(), **more)


@pytest.mark.parametrize("decode", ["auto", "cpu"])
def test_a_cpu_decodes_by_itself(decode: str) -> None:
    assert choose(decode, CPU) == "cpu"


@pytest.mark.parametrize("decode", ["gpu", "gpu-roi"])
def test_a_gpus_mode_without_one_is_refused(decode: str) -> None:
    with pytest.raises(DeviceError, match=f"decode={decode} needs a GPU.*use decode=cpu or auto"):
        choose(decode, CPU)
    for create in (create_executor, create_eval_executor):
        with pytest.raises(DeviceError, match="needs a GPU"):
            create(decode, INDEX, RECIPE, rows=4, device=CPU, num_threads=1)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(RecipeError, match="decode='nvjpeg': use one of auto, gpu, gpu-roi, cpu"):
        choose("nvjpeg", GPU)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_a_card_with_a_jpeg_engine_decodes(
    monkeypatch: pytest.MonkeyPatch, compiler: Callable[[str | None], None], capability: tuple[int, int]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose("auto", GPU) == "gpu"


@pytest.fixture
def measured(
    monkeypatch: pytest.MonkeyPatch, compiler: Callable[[str | None], None]
) -> Iterator[Callable[[float, float], str]]:
    """`measured(gpu_s, cpu_s)`: what auto takes on a V100 where a batch takes so long."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    opened: list[Slow] = []

    def chosen(gpu_s: float, cpu_s: float) -> str:
        clock = Clock()

        def create(mode: str, *_: object, **__: object) -> Slow:
            opened.append(Slow(clock, {"gpu": gpu_s, "cpu": cpu_s}[mode]))
            return opened[-1]

        monkeypatch.setattr(decode_mode, "create_executor", create)
        return choose("auto", GPU, clock=clock)

    yield chosen
    assert [made.closed for made in opened] == [True] * len(opened)
    assert {made.made for made in opened} <= {1 + decode_mode.BATCHES}


@pytest.mark.parametrize(("gpu_s", "cpu_s", "best"), [(0.1, 0.2, "gpu"), (0.2, 0.1, "cpu")])
def test_where_nothing_is_known_the_faster_one_is_taken(
    measured: Callable[[float, float], str], caplog: pytest.LogCaptureFixture, gpu_s: float, cpu_s: float, best: str
) -> None:
    with caplog.at_level("INFO"):
        assert measured(gpu_s, cpu_s) == best
    assert f"decode=auto takes {best}: gpu {8 / gpu_s:.0f} images/s, cpu {8 / cpu_s:.0f} images/s" in caplog.text


def test_ranks_that_cannot_meet_do_not_measure(
    monkeypatch: pytest.MonkeyPatch, compiler: Callable[[str | None], None]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    assert choose("auto", GPU, World(1, 2, 1)) == "gpu"


def test_a_gpu_without_a_compiler_gets_its_batches_from_the_cpu(
    monkeypatch: pytest.MonkeyPatch, compiler: Callable[[str | None], None], caplog: pytest.LogCaptureFixture
) -> None:
    compiler(COMPILER)
    assert choose("auto", GPU) == "cpu"
    assert f"{COMPILER}, so batches are made on the CPU (decode=cpu)" in caplog.text
    with pytest.raises(DeviceError, match=f"decode=gpu needs kernels on a GPU, and {COMPILER}: use decode=cpu"):
        choose("gpu", GPU)
    monkeypatch.setattr(decode_mode, "HostExecutor", lambda *_, **more: SimpleNamespace(augment=more["augment"]))
    made: Any = create_executor("cpu", INDEX, RECIPE, rows=4, device=GPU, num_threads=1)
    assert made.augment  # flip and RandAugment too


def test_a_resumed_run_keeps_its_mode(compiler: Callable[[str | None], None]) -> None:
    assert resumed_decode("auto", "gpu-roi", GPU) == "gpu-roi"
    assert resumed_decode("auto", "", GPU) == "auto"  # a checkpoint that knows none
    assert resumed_decode("cpu", "gpu", CPU) == "cpu"
    with pytest.raises(DeviceError, match=r"the run decoded otherwise .*decode=gpu needs a GPU.*give --decode"):
        resumed_decode("auto", "gpu", CPU)


def test_a_checkpoint_is_evaluated_as_its_run_did(
    compiler: Callable[[str | None], None], caplog: pytest.LogCaptureFixture
) -> None:
    assert evaluation_decode("cpu", GPU) == "cpu"
    assert evaluation_decode("", GPU) == evaluation_decode("", CPU) == "auto"
    assert not caplog.records
    assert evaluation_decode("gpu", CPU) == "auto"
    assert "its figures may differ" in caplog.text
