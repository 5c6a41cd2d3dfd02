"""What a GPU is asked to do, without one: operators, launches, streams and events, memory lent, waits."""

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from helpers.fake_cuda import FakeCuda
from rsbdali.bench.graph import PYTHON, operators
from rsbdali.ops import randaugment_kernel
from rsbdali.pipelines import augmented
from rsbdali.pipelines.augmented import Augmented
from rsbdali.pipelines.executor import DecodedBatch, scatter
from rsbdali.pipelines.gpu_stream import Lent
from rsbdali.pipelines.train import train_graph
from rsbdali.plan.planner import BatchPlan, Planner
from rsbdali.plan.randaugment import FILL_RGB, Op
from rsbdali.recipe import Recipe

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(("name", "repeats"), [("a3", 1), ("a1", 1), ("a1", 3)])
def test_the_graph_is_stock_and_small(name: str, repeats: int) -> None:
    found = operators(train_graph(size=Recipe.load(name).train_size, repeats=repeats, device="gpu", roi=False))
    slices = repeats + 1 if repeats > 1 else 1
    assert (found["decoders__Image"], found["Slice"], found["Resize"]) == (1, slices, repeats)
    assert found.total() - found["ExternalSource"] <= 4 * max(1, repeats)
    if repeats == 1:
        assert found.total() == 8
    assert not any(found[operator] for operator in PYTHON)


def test_the_exact_graph_is_what_it_was() -> None:
    found = operators(train_graph(size=(160, 160), repeats=1, device="gpu", roi=False, layers=2), conditionals=True)
    assert (found.total(), sum(found[operator] for operator in PYTHON)) == (453, 4)


class Counted:
    """Stands for a Triton kernel: counts launches."""

    def __init__(self) -> None:
        self.launches = 0

    def __getitem__(self, grid: object) -> Any:
        def launch(*_: object, **__: object) -> None:
            self.launches += 1

        return launch


@pytest.mark.parametrize(
    ("ops", "tables"), [([[Op.INVERT, Op.COLOR], [Op.NONE, Op.EQUALIZE]], 2), ([[Op.COLOR, Op.ROTATE]], 0), ([[]], 0)]
)
def test_launches_of_a_batch(monkeypatch: pytest.MonkeyPatch, ops: list[list[Op]], tables: int) -> None:
    """Two a layer, whatever the number of images; one where no image of the layer has a table."""
    kernels = {name: Counted() for name in ("tables_kernel", "apply_kernel")}
    for name, kernel in kernels.items():
        monkeypatch.setattr(randaugment_kernel, name, kernel)
    op_NL = np.array(ops, np.int8).reshape(len(ops), len(ops[0]))
    layers = op_NL.shape[1]
    images_NHWC = torch.zeros((len(ops), 8, 8, 3), dtype=torch.uint8)
    rows = np.zeros(len(ops), bool), op_NL, np.zeros(op_NL.shape), np.zeros(op_NL.shape, np.uint8)
    randaugment_kernel.randaugment_fused(images_NHWC, *rows, fill=(1, 2, 3))
    assert kernels["tables_kernel"].launches == tables
    assert kernels["apply_kernel"].launches == max(1, layers)


class Resized:
    """An executor that hands out black images."""

    rows, pixels = 4, ""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda, self._plans = cuda, list[BatchPlan]()

    def submit(self, plan: BatchPlan) -> None:
        self._plans.append(plan)

    def collect(self) -> DecodedBatch:
        self._cuda.note("resized")
        return DecodedBatch(torch.zeros((len(self._plans.pop(0)), 8, 8, 3), dtype=torch.uint8), {})

    def close(self) -> None:
        """Nothing."""


def test_a_batch_is_made_beside_the_model_and_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)

    def randaugment(images_NHWC: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        cuda.note("randaugment")
        return images_NHWC + 1

    monkeypatch.setattr(augmented, "randaugment", randaugment)
    recipe = Recipe(img_size=8, global_batch_size=4, mix_groups=1)
    plan = Planner(np.full(8, 9), np.full(8, 9), recipe).batch(0, 0)
    executor = Augmented(Resized(cuda), GPU, FILL_RGB)
    for _ in range(2):
        executor.submit(plan)
    for _ in range(2):
        assert executor.collect().images_NHWC.unique().tolist() == [1]
    executor.close()
    side = "side, priority -1"
    for first, event in ((0, 1), (5, 2)):
        assert cuda.diary[first : first + 5] == [
            ("resized", side, -1),
            ("randaugment", side, -1),
            ("record", side, event),
            ("wait", "model", event),
            ("used on model", "model", -1),
        ]
    assert len(cuda.diary) == 10


def test_lent_memory_is_kept_until_its_event_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, lent = FakeCuda(monkeypatch), Lent(GPU)

    def lend() -> weakref.ref[Any]:
        memory = torch.zeros(3)
        lent.lend([memory])
        return weakref.ref(memory)

    first, second = lend(), lend()  # kernels that read the first are launched before the second is lent
    cuda.passed = False
    third = lend()
    assert [one() is not None for one in (first, second, third)] == [True] * 3
    cuda.passed = True
    fourth = lend()
    gc.collect()
    assert [one() is not None for one in (first, second, third, fourth)] == [False, False, False, True]
    assert not [entry for entry in cuda.diary if entry[0] == "wait for host"]
    lent.close()
    assert fourth() is None
    assert cuda.diary[-1][0] == "wait for host"  # at the end, where nothing is lost by it


def test_a_gpu_batch_is_memory_of_its_own() -> None:
    part_KHWC = torch.zeros((2, 4, 4, 3), dtype=torch.uint8)
    rows = [np.arange(2)]
    assert scatter([part_KHWC], rows, {}, size=(4, 4), device=GPU).images_NHWC.data_ptr() != part_KHWC.data_ptr()
    lent = scatter([part_KHWC], rows, {}, size=(4, 4), device=torch.device("cpu"))
    assert lent.images_NHWC.data_ptr() == part_KHWC.data_ptr()
