"""The feed: order, prefetch, jumps, and the repair of a batch that does not decode."""

from collections import deque

import numpy as np
import pytest
import torch

from rsbdali.errors import DataError
from rsbdali.loader.bad_images import BadImages
from rsbdali.loader.prefetcher import Feed
from rsbdali.pipelines.executor import DecodeFailure


class FakeExecutor:
    """Plans are int arrays; a batch is the array itself; a plan that holds a bad number does not decode."""

    def __init__(self, bad: set[int]) -> None:
        self.bad, self.queue, self.submitted = bad, deque[np.ndarray](), 0

    def submit(self, plan: np.ndarray) -> None:
        self.queue.append(plan)
        self.submitted += 1

    def collect(self) -> torch.Tensor:
        plan = self.queue.popleft()
        if self.bad & set(plan.tolist()):
            raise DecodeFailure("a batch did not decode")
        return torch.from_numpy(plan)


def make_feed(bad: set[int] = frozenset(), last: int = 10**9, depth: int = 3) -> tuple[Feed, FakeExecutor, list[int]]:  # type: ignore[assignment]
    executor, mended = FakeExecutor(set(bad)), []

    def mend(plan: np.ndarray, rows: list[int]) -> np.ndarray:
        mended.extend(plan[rows].tolist())
        plan = plan.copy()
        plan[rows] += 1000
        return plan

    def make(tick: int) -> np.ndarray | None:
        return np.arange(8) + 8 * tick if tick < last else None

    feed = Feed(executor, make=make, rows=np.ndarray.__getitem__, mend=mend, depth=depth)
    return feed, executor, mended


def get(feed: Feed, tick: int) -> list[int]:
    plan, images = feed.get(tick, len)
    assert plan.tolist() == images.tolist()
    return images.tolist()


def test_ticks_come_in_order_and_the_queue_stays_full() -> None:
    feed, executor, _ = make_feed()
    for tick in range(5):
        assert get(feed, tick) == list(range(8 * tick, 8 * tick + 8))
        assert len(executor.queue) == 3
    assert executor.submitted == 8
    assert feed.wait_s > 0


def test_a_jump_drops_the_strays() -> None:
    feed, _, _ = make_feed()
    for tick in (0, 1, 100, 101, 3, 102):
        assert get(feed, tick)[0] == 8 * tick


def test_a_short_jump_keeps_what_is_still_wanted() -> None:
    feed, executor, _ = make_feed()
    get(feed, 0)
    submitted = executor.submitted
    assert get(feed, 2)[0] == 16
    assert executor.submitted == submitted + 2  # ticks 4 and 5; 2 and 3 were there


def test_nothing_past_the_last_tick() -> None:
    feed, executor, _ = make_feed(last=2)
    get(feed, 0)
    get(feed, 1)
    assert executor.submitted == 2


@pytest.mark.parametrize("bad", [{3}, {0, 7}, {9}, {2, 11, 12, 20}, set(range(8))])
def test_bad_rows_are_found_and_mended_and_the_neighbours_come_undisturbed(bad: set[int]) -> None:
    feed, _, mended = make_feed(bad)
    for tick in range(4):
        expected = [i + 1000 if i in bad else i for i in range(8 * tick, 8 * tick + 8)]
        assert get(feed, tick) == expected
    assert sorted(mended) == sorted(bad)


def test_a_mended_row_that_is_bad_again_is_mended_again() -> None:
    feed, _, mended = make_feed({3, 1003})
    assert get(feed, 0)[3] == 2003
    assert mended == [3, 1003]


def test_bad_images_are_named_once_and_limited() -> None:
    seen: list[tuple[str, str]] = []
    bad = BadImages(lambda path, reason: seen.append((path, reason)), limit=2)
    bad.add("a", "cut")
    bad.add("a", "cut")
    bad.add("b", "empty")
    assert seen == [("a", "cut"), ("b", "empty")]
    assert bad.reasons == {"a": "cut", "b": "empty"}
    with pytest.raises(DataError, match="--max-bad-images 2"):
        bad.add("c", "text")
