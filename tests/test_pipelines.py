"""The executors as queues: order, failures, sizes, threads; repeats, probing, decode modes; the GPU's graph."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nvidia.dali import pipeline_def
from nvidia.dali.data_node import DataNode

from helpers.common import CPU
from rsbdali.data.index import ImageIndex
from rsbdali.pipelines import randaugment
from rsbdali.pipelines.decode import gpu_settings
from rsbdali.pipelines.eval import EvalExecutor, eval_graph
from rsbdali.pipelines.train import GraphExecutor, train_graph
from rsbdali.plan.planner import BatchPlan, Planner
from rsbdali.plan.randaugment import Op
from rsbdali.plan.shared_decodes import covering_windows, share_decodes
from rsbdali.recipe import Recipe

SIZES = SimpleNamespace(width_N=np.array([500, 375]), height_N=np.array([375, 500]))
RECIPE = Recipe(img_size=32, aa="rand-m6-mstd0.5-inc1", global_batch_size=8, mix_groups=1)


@pytest.fixture
def index(image_tree: Callable[..., Path]) -> ImageIndex:
    return ImageIndex.scan(image_tree(3, 8), threads=1)


def planner_of(index: ImageIndex, recipe: Recipe = RECIPE) -> Planner:
    return Planner(index.width_N, index.height_N, recipe)


def replace_samples(plan: BatchPlan, i: int) -> BatchPlan:
    """A plan whose rows are all the whole of image i."""
    return replace(
        plan, sample_N=np.full_like(plan.sample_N, i), crop_N4=np.tile(np.int32([0, 0, 40, 40]), (len(plan), 1))
    )


@pytest.fixture
def executor(index: ImageIndex) -> Iterator[GraphExecutor]:
    executor = GraphExecutor(index, RECIPE, rows=8, device=CPU, num_threads=2, roi=True, augment=True)
    yield executor
    executor.close()


def test_batches_come_in_order_and_stay_valid(index: ImageIndex, executor: GraphExecutor) -> None:
    planner = planner_of(index)
    plans = [planner.batch(epoch, step) for epoch in range(3) for step in range(planner.steps_per_epoch)]
    for plan in plans:  # more than any prefetch depth: none blocks
        executor.submit(plan)
    together = [executor.collect().images_NHWC for _ in plans]
    for plan, images_NHWC in zip(plans, together, strict=True):
        executor.submit(plan)
        assert torch.equal(images_NHWC, executor.collect().images_NHWC)
    assert {(image.dtype, tuple(image.shape)) for image in together} == {(torch.uint8, (8, 32, 32, 3))}


def test_batches_may_be_smaller(index: ImageIndex, executor: GraphExecutor) -> None:
    plan = planner_of(index).batch(0, 0)
    parts = [plan.rows(slice(0, 1)), plan.rows(slice(1, 8)), plan, plan.rows(np.array([5, 2]))]
    for part in parts:
        executor.submit(part)
    first, second, whole, picked = [executor.collect().images_NHWC for _ in parts]
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(picked, whole[[5, 2]])


def test_threads_and_region_decoding_change_nothing(index: ImageIndex, executor: GraphExecutor) -> None:
    plan = planner_of(index).batch(1, 2)
    executor.submit(plan)
    images_NHWC = executor.collect().images_NHWC
    other = GraphExecutor(index, RECIPE, rows=8, device=CPU, num_threads=1, roi=False, augment=True)
    other.submit(plan)
    assert torch.equal(other.collect().images_NHWC, images_NHWC)
    other.close()


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "missing"])
def test_a_failed_batch_leaves_the_others_alone(
    index: ImageIndex, executor: GraphExecutor, write_image: Callable[..., Path], kind: str
) -> None:
    planner = planner_of(index)
    plans = [planner.batch(0, step) for step in range(3)]
    for plan in plans:
        executor.submit(plan)
    good = [executor.collect().images_NHWC for _ in plans]
    broken = int(plans[1].sample_N[3])
    assert broken not in np.concatenate([plans[0].sample_N, plans[2].sample_N])
    path = Path(index.path(broken))
    if kind == "missing":
        path.unlink()
    else:
        write_image(path, kind, int(index.width_N[broken]), int(index.height_N[broken]))
    # the lowest rows, which the cut has taken
    crop_N4 = plans[1].crop_N4.copy()
    crop_N4[3] = (index.height_N[broken] - 4, 0, 4, 4)
    plans[1] = replace(plans[1], crop_N4=crop_N4)
    for _ in range(2):
        for plan in plans:
            executor.submit(plan)
        assert torch.equal(executor.collect().images_NHWC, good[0])
        images_NHWC, bad = executor.collect()
        rows = [row for row in range(len(plans[1])) if plans[1].sample_N[row] == broken]
        assert sorted(bad) == rows
        kept_N = np.delete(np.arange(len(plans[1])), rows)
        assert torch.equal(images_NHWC[kept_N], good[1][kept_N])
        assert torch.equal(executor.collect().images_NHWC, good[2])


def test_eval_failure_leaves_the_others_alone(index: ImageIndex, write_image: Callable[..., Path]) -> None:
    executor = EvalExecutor(index, Recipe(test_img_size=32), rows=8, device=CPU, num_threads=1)
    write_image(Path(index.path(9)), "truncated", int(index.width_N[9]), int(index.height_N[9]))
    batches = [np.arange(8), np.arange(8, 16), np.arange(16, 19)]
    for sample_N in batches:
        executor.submit(sample_N)
    found = [executor.collect() for _ in batches]
    assert [len(images_NHWC) for images_NHWC, _ in found] == [8, 8, 3]
    assert [sorted(bad) for _, bad in found] == [[], [1], []]
    executor.close()


def test_a_batch_of_which_no_row_decodes_says_so_and_the_next_is_whole(index: ImageIndex) -> None:
    cut = 5
    path = Path(index.path(cut))
    path.write_bytes(path.read_bytes()[:-200])  # behind the header: Pillow refuses it as well
    plan = planner_of(index).batch(0, 0)
    of_cut, good = replace_samples(plan, cut), replace_samples(plan, 4)
    executor = GraphExecutor(index, RECIPE, rows=8, device=CPU, num_threads=1, roi=False)
    for each in (of_cut.rows(slice(0, 1)), good, of_cut.rows(slice(0, 3))):
        executor.submit(each)
    one, whole, three = executor.collect(), executor.collect(), executor.collect()
    executor.close()
    assert [sorted(batch.bad) for batch in (one, whole, three)] == [[0], [], [0, 1, 2]]
    assert "truncated" in one.bad[0]


@pytest.mark.parametrize("aa", ["rand-m6-mstd0.5-inc1", None])
def test_local_repeats_equal_one_decode_a_row(index: ImageIndex, aa: str | None) -> None:
    """Rows of one image share a decode, and come out as if they did not, in the plan's order."""
    spread = replace(RECIPE, aug_repeats=3, aa=aa)
    local = replace(spread, aug_repeats_mode="decode_once")
    planner = planner_of(index, local)
    plan = planner.batch(0, 0)
    plans = [plan, planner.batch(1, 1), plan.rows(np.array([7, 0, 3])), planner.replacement(plan, 2, 0)]
    batches = []
    for recipe in (spread, local):
        executor = GraphExecutor(index, recipe, rows=8, device=CPU, num_threads=2, roi=True, augment=True)
        for each in plans:
            executor.submit(each)
        batches.append([executor.collect().images_NHWC for _ in plans])
        executor.close()
    for ours, theirs in zip(*batches, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("repeats", [1, 2, 3, 5])
def test_share_decodes(repeats: int) -> None:
    rng = np.random.default_rng(repeats)
    for n in (1, 7, 64):
        sample_N = rng.integers(0, 1 + n // 3, n)
        rows_UK = share_decodes(sample_N, repeats)
        assert sorted(set(rows_UK.ravel().tolist())) == list(range(n))
        assert (sample_N[rows_UK] == sample_N[rows_UK[:, :1]]).all()
        assert len(rows_UK) == (-(-np.unique(sample_N, return_counts=True)[1] // repeats)).sum()


def test_covering_windows() -> None:
    crop_N4 = np.array([[5, 6, 10, 10], [0, 8, 7, 20], [1, 1, 2, 2]])
    assert covering_windows(crop_N4, np.array([[0, 1], [2, 2]])).tolist() == [[0, 6, 15, 22], [1, 1, 2, 2]]


def operators(node: DataNode, seen: dict[int, tuple[str, str]] | None = None) -> set[tuple[str, str]]:
    """(operator, device) of everything that a node is made from."""
    seen = {} if seen is None else seen
    if id(node.source) not in seen:
        name = getattr(node.source._op, "schema_name", None) or "ExternalSource"
        seen[id(node.source)] = (name, node.device)
        for source in node.source.inputs:
            operators(source, seen)
    return set(seen.values())


@pytest.mark.parametrize(
    "graph",
    [
        train_graph(size=(32, 48), repeats=1, device="gpu", roi=False, settings=gpu_settings(SIZES)),
        train_graph(size=(32, 48), repeats=2, device="gpu", roi=True),
        train_graph(size=(32, 48), layers=2, repeats=2, device="gpu", roi=True),
        eval_graph(size=(32, 32), device="gpu"),
    ],
)
def test_gpu_graph_keeps_pixels_on_the_gpu(graph: Callable[..., DataNode | tuple[DataNode, ...]]) -> None:
    """The GPU's graph can be written down without a GPU: only parameters and encoded bytes stand on the CPU in it."""
    outputs: list[DataNode] = []

    def define(source: Callable[[], object]) -> DataNode | tuple[DataNode, ...]:
        result = graph(source)
        outputs.extend(result if isinstance(result, tuple) else (result,))
        return result

    pipeline_def(define, enable_conditionals=True)(
        lambda: (), batch_size=4, num_threads=1, device_id=0, prefetch_queue_depth=1, exec_dynamic=True
    )
    for node in outputs:
        assert node.device == "gpu"
        host = {name for name, device in operators(node) if device == "cpu"}
        assert host <= {"ExternalSource", "_conditional__Split", "_ArithmeticGenericOp", "Cast"}


def test_a_failing_callback_is_no_decode_failure(index: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> list[object]:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(randaugment, "warp_samples", broken)
    executor = GraphExecutor(index, RECIPE, rows=8, device=CPU, num_threads=1, roi=True, augment=True)
    plan = planner_of(index).batch(0, 0)
    executor.submit(replace(plan, op_NL=np.full_like(plan.op_NL, Op.SHEAR_X)))
    with pytest.raises(RuntimeError, match="planted"):
        executor.collect()
    executor.close()


def test_close_drops_what_is_under_way(index: ImageIndex, executor: GraphExecutor) -> None:
    plan = planner_of(index).batch(0, 0)
    executor.submit(plan)
    kept = executor.collect().images_NHWC
    before = kept.clone()
    for _ in range(3):
        executor.submit(plan)
    executor.close()
    assert torch.equal(kept, before)
