"""The host executor as a machine: order, failures, repeats, threads, memory."""

import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.common import CPU
from rsbdali.data.index import ImageIndex
from rsbdali.pipelines.buffers import BufferPool
from rsbdali.pipelines.host.executor import HostExecutor
from rsbdali.plan.planner import BatchPlan, Planner
from rsbdali.plan.randaugment import Op
from rsbdali.recipe import Recipe

ROWS = 24
Make = Callable[..., HostExecutor]


@pytest.fixture
def index(image_tree: Callable[..., Path]) -> ImageIndex:
    return ImageIndex.scan(image_tree(classes=4, per_class=12))


@pytest.fixture
def recipe() -> Recipe:
    return Recipe.load("a3", {"img_size": "48", "global_batch_size": str(ROWS)})


@pytest.fixture
def planner(index: ImageIndex, recipe: Recipe) -> Planner:
    return Planner(index.width_N, index.height_N, recipe)


@pytest.fixture
def make(index: ImageIndex, recipe: Recipe) -> Iterator[Make]:
    made: list[HostExecutor] = []

    def build(num_threads: int = 2, rows: int = ROWS) -> HostExecutor:
        made.append(HostExecutor(index, recipe, rows=rows, device=CPU, num_threads=num_threads))
        return made[-1]

    yield build
    for executor in made:
        executor.close()


def _run(executor: HostExecutor, plans: list[BatchPlan]) -> list[torch.Tensor]:
    for plan in plans:
        executor.submit(plan)
    return [executor.collect().images_NHWC for _ in plans]


def _single(plan: BatchPlan, row: int) -> BatchPlan:
    return plan.rows(slice(row, row + 1))


def test_batches_come_in_order_and_do_not_depend_on_threads_or_batching(make: Make, planner: Planner) -> None:
    plans = [planner.batch(epoch, step) for epoch in range(2) for step in range(2)]
    batches = _run(make(2), plans)
    for plan, batch in zip(plans, batches, strict=True):
        assert batch.shape == (ROWS, 48, 48, 3)
        assert batch.dtype == torch.uint8
        assert batch.is_contiguous()
        alone = torch.cat(_run(make(1), [_single(plan, row) for row in (0, 7, ROWS - 1)]))
        assert torch.equal(alone, batch[[0, 7, ROWS - 1]])
    assert not torch.equal(batches[0], batches[1])
    for batch, again in zip(batches, _run(make(5), plans), strict=True):
        assert torch.equal(batch, again)


def test_repeats_are_decoded_once_and_equal_rows_done_alone(
    make: Make, planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planner.batch(0, 0)
    sample_N = np.repeat(plan.sample_N[:8], 3)[np.random.default_rng(0).permutation(ROWS)]
    # crops that fit whatever image a row now has, apart from each other so that the window must cover several
    side_N = np.minimum(planner.width_N, planner.height_N)[sample_N] // 2
    start_N = side_N * (np.arange(ROWS) % 2)
    plan = replace(plan, sample_N=sample_N, crop_N4=np.stack([start_N, start_N, side_N, side_N], axis=1))
    alone = torch.cat(_run(make(1), [_single(plan, row) for row in range(ROWS)]))
    decoded = []
    from rsbdali.pipelines.host import decode

    original = decode.WindowDecoder.decode

    def spy(self: decode.WindowDecoder, encoded: list[np.ndarray], window_M4: np.ndarray) -> list[np.ndarray]:
        decoded.extend(image.tobytes() for image in encoded)
        return original(self, encoded, window_M4)

    monkeypatch.setattr(decode.WindowDecoder, "decode", spy)
    (batch,) = _run(make(2), [plan])
    assert torch.equal(batch, alone)
    assert len(decoded) == len(set(decoded)) == 8


@pytest.mark.parametrize("kind", ["cut_header", "truncated", "gone"])
def test_bad_rows_are_named_and_the_others_are_as_they_were(
    make: Make, planner: Planner, index: ImageIndex, kind: str
) -> None:
    plans = [planner.batch(0, 0), planner.batch(0, 1), planner.batch(1, 0)]
    expected = _run(make(2), plans)
    bad = int(plans[1].sample_N[3])
    path = Path(index.path(bad))
    content = path.read_bytes()
    # cut in the scan, the image is bad for the windows that reach the cut
    crop_N4 = np.where((plans[1].sample_N == bad)[:, None], [index.height_N[bad] - 4, 0, 4, 4], plans[1].crop_N4)
    if kind == "truncated":
        plans[1] = replace(plans[1], crop_N4=crop_N4.astype(np.int32))
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: 150 if kind == "cut_header" else len(content) * 6 // 10])
    executor = make(2)
    for plan in plans:
        executor.submit(plan)
    for plan, batch in zip(plans, expected, strict=True):
        images_NHWC, reasons = executor.collect()
        if plan is plans[1] or kind != "truncated":
            assert sorted(reasons) == np.flatnonzero(plan.sample_N == bad).tolist()
        kept_N = np.delete(np.arange(ROWS), list(reasons))
        assert torch.equal(images_NHWC[kept_N], batch[kept_N])
    path.write_bytes(content)
    assert torch.equal(_run(executor, [planner.batch(0, 1)])[0], expected[1])


def test_an_error_in_a_worker_reaches_the_caller(make: Make, planner: Planner) -> None:
    plan = planner.batch(0, 0)
    unknown = replace(plan, op_NL=np.full_like(plan.op_NL, 99))
    executor = make(2)
    with pytest.raises(KeyError):
        _run(executor, [unknown])
    assert len(_run(executor, [plan])) == 1


def test_a_batch_stays_valid_while_it_is_held(make: Make, planner: Planner) -> None:
    executor = make(2)
    plans = [planner.batch(epoch, step) for epoch in range(3) for step in range(2)]
    (first,) = _run(executor, plans[:1])
    kept, copy = first[2:5], first[2:5].clone()
    del first
    _run(executor, plans)
    assert torch.equal(kept, copy)


def test_fewer_rows_than_made_for(make: Make, planner: Planner) -> None:
    plan = planner.batch(0, 0)
    executor = make(2)
    (whole,) = _run(executor, [plan])
    whole = whole.clone()
    (part,) = _run(executor, [plan.rows(slice(3, 8))])
    assert torch.equal(part, whole[3:8])


def _workers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("rsbdali-host")}


def test_threads_are_as_asked_and_torch_keeps_its_setting(make: Make, planner: Planner) -> None:
    before = torch.get_num_threads()
    others = _workers()
    executor = make(3)
    assert len(_workers() - others) == 3
    _run(executor, [planner.batch(0, 0)])
    assert torch.get_num_threads() == before
    seen: list[int] = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [before]
    executor.close()
    executor.close()  # a second time does nothing
    assert not _workers() - others


def test_workers_end_with_the_executor(index: ImageIndex, recipe: Recipe, planner: Planner) -> None:
    others = _workers()
    executor = HostExecutor(index, recipe, rows=ROWS, device=CPU, num_threads=2)
    executor.submit(planner.batch(0, 0))  # never collected
    del executor
    gc.collect()
    assert not _workers() - others


def _resident_mib() -> float:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_is_flat_over_many_batches(make: Make, planner: Planner) -> None:
    executor = make(2)
    plans = [planner.batch(epoch, step) for epoch in range(10) for step in range(2)]

    def batches(count: int) -> None:
        executor.submit(plans[0])
        for i in range(count):
            executor.submit(plans[(i + 1) % len(plans)])
            executor.collect()
        executor.collect()

    batches(40)
    before = _resident_mib()
    batches(200)
    # 200 batches of 0.16 MiB, 4800 decoded images of 0.03 MiB: a leak of either would show as 30 MiB or more
    assert _resident_mib() - before < 12


def test_buffer_pool_reuses_only_what_is_not_held() -> None:
    pool = BufferPool((4, 3), torch.float32)
    first = pool.take()
    view, address = first[1:], first.data_ptr()
    assert first.shape == (4, 3)
    assert first.dtype == torch.float32
    del first
    second = pool.take()
    assert second.data_ptr() != address
    del view
    assert pool.take().data_ptr() == address


def test_plan_without_randaugment(index: ImageIndex, recipe: Recipe) -> None:
    plain = replace(recipe, aa=None)
    planner = Planner(index.width_N, index.height_N, plain)
    plan = planner.batch(0, 0)
    assert (plan.op_NL == Op.NONE).all()
    executor = HostExecutor(index, plain, rows=ROWS, device=CPU, num_threads=1)
    (batch,) = _run(executor, [plan])
    executor.close()
    assert batch.float().std() > 10
