"""The prefetcher: order, prefetch, jumps, one plan by itself, and what an exception leaves behind."""

from collections import deque

import numpy as np
import pytest
import torch

from rsbdali.errors import RsbdaliError
from rsbdali.loader.prefetcher import Prefetcher
from rsbdali.pipelines.executor import DecodedBatch


class FakeExecutor:
    """Plans are int arrays; a batch is the array itself; numbers in `bad` do not decode."""

    pixels = "made up"

    def __init__(self, bad: set[int], fail: set[int]) -> None:
        self.bad, self.fail, self.queue, self.submitted, self.closed = bad, fail, deque[np.ndarray](), 0, False

    def submit(self, plan: np.ndarray) -> None:
        assert not self.closed
        self.queue.append(plan)
        self.submitted += 1

    def collect(self) -> DecodedBatch:
        plan = self.queue.popleft()
        if self.fail & set(plan.tolist()):
            self.fail.clear()
            raise KeyboardInterrupt
        bad = {row: "bad" for row, i in enumerate(plan.tolist()) if i in self.bad}
        return DecodedBatch(torch.from_numpy(plan), bad)

    def close(self) -> None:
        self.closed = True
        self.queue.clear()


def make_feed(
    bad: set[int] = frozenset(), last: int = 10**9, depth: int = 3, fail: set[int] = frozenset()
) -> tuple[Prefetcher[np.ndarray], list[FakeExecutor]]:  # type: ignore[assignment]
    opened: list[FakeExecutor] = []

    def open_executor() -> FakeExecutor:
        opened.append(FakeExecutor(set(bad), set(fail) if not opened else set()))
        return opened[-1]

    def make(batch_index: int) -> np.ndarray | None:
        return np.arange(8) + 8 * batch_index if batch_index < last else None

    return Prefetcher(open_executor, make=make, prefetch_depth=depth), opened


def get(prefetcher: Prefetcher[np.ndarray], batch_index: int) -> list[int]:
    plan, (images, _) = prefetcher.get(batch_index)
    assert plan.tolist() == images.tolist()
    return images.tolist()


def test_ticks_come_in_order_and_the_queue_stays_full() -> None:
    prefetcher, (executor,) = make_feed()
    for batch_index in range(5):
        assert get(prefetcher, batch_index) == list(range(8 * batch_index, 8 * batch_index + 8))
        assert len(executor.queue) == 3
    assert executor.submitted == 8
    assert prefetcher.wait_s > 0


def test_a_jump_drops_the_strays() -> None:
    prefetcher, _ = make_feed()
    for batch_index in (0, 1, 100, 101, 3, 102):
        assert get(prefetcher, batch_index)[0] == 8 * batch_index


def test_a_short_jump_keeps_what_is_still_wanted() -> None:
    prefetcher, (executor,) = make_feed()
    get(prefetcher, 0)
    submitted = executor.submitted
    assert get(prefetcher, 2)[0] == 16
    assert executor.submitted == submitted + 2  # batch indices 4 and 5; 2 and 3 were there


def test_nothing_past_the_last_tick() -> None:
    prefetcher, (executor,) = make_feed(last=2)
    get(prefetcher, 0)
    get(prefetcher, 1)
    assert executor.submitted == 2


def test_bad_rows_come_with_their_batch() -> None:
    prefetcher, _ = make_feed({3, 9, 12})
    assert [sorted(prefetcher.get(batch_index)[1].bad) for batch_index in range(3)] == [[3], [1, 4], []]


def test_one_plan_by_itself_disturbs_nothing() -> None:
    prefetcher, (executor,) = make_feed()
    for batch_index in range(6):
        assert get(prefetcher, batch_index)[0] == 8 * batch_index
        assert prefetcher.run(np.arange(3) + 1000).images_NHWC.tolist() == [1000, 1001, 1002]
    assert executor.submitted == 9 + 6


def test_an_exception_leaves_a_feed_that_works() -> None:
    prefetcher, opened = make_feed(fail={16})
    get(prefetcher, 0)
    get(prefetcher, 1)
    with pytest.raises(KeyboardInterrupt):
        prefetcher.get(2)
    assert opened[0].closed
    assert [get(prefetcher, batch_index)[0] for batch_index in (2, 3, 9)] == [16, 24, 72]
    assert len(opened) == 2


def test_a_closed_feed_says_so() -> None:
    prefetcher, (executor,) = make_feed()
    get(prefetcher, 0)
    prefetcher.close()
    prefetcher.close()
    assert executor.closed
    with pytest.raises(RsbdaliError, match="the loader is closed"):
        prefetcher.get(1)
