"""A loader in several threads, in forked children, pickled, and dropped while its threads work."""

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count
from pathlib import Path
from typing import Any

import pytest
import torch

from rsbdali import create_loader
from rsbdali.data.index import ImageIndex
from rsbdali.data.sources.base import ReadRequest, StoredImage
from rsbdali.data.sources.read_ahead import AheadReader
from rsbdali.errors import RsbdaliError
from rsbdali.integrations.tuple_loader import TupleLoader

KINDS = ("cpu", "graph", "eval")
RANDAUGMENT = "rand-m9-mstd0.5-inc1"


@pytest.fixture
def make(image_tree: Callable[..., Path]) -> Callable[[str], TupleLoader]:
    """`make(kind)`: four batches of four images an epoch, in training with calls from DALI's threads into Python."""
    data = image_tree(classes=2, per_class=8).parent

    def make_one(kind: str) -> TupleLoader:
        common: dict[str, Any] = {"device": "cpu", "num_workers": 2}
        if kind == "eval":
            return create_loader(data / "train", 32, 4, **common)
        return create_loader(data, 32, 4, True, auto_augment=RANDAUGMENT, decode=kind, **common)

    return make_one


def in_threads(work: Callable[[], list[torch.Tensor]], count: int = 3) -> list[list[torch.Tensor]]:
    start = threading.Barrier(count)

    def run() -> list[torch.Tensor]:
        start.wait()
        return work()

    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(run) for _ in range(count)]]


def sums(batches: list[torch.Tensor]) -> list[float]:
    return [batch.double().sum().item() for batch in batches]


@pytest.mark.parametrize("kind", KINDS)
def test_threads_with_a_pass_each(make: Callable[[str], TupleLoader], kind: str) -> None:
    with make(kind) as alone, make(kind) as shared:
        epochs = sorted(sums([images for images, _ in alone]) for _ in range(3))
        found = in_threads(lambda: [images for images, _ in shared])
    assert sorted(map(sums, found)) == epochs  # each got an epoch of its own, whole and in order


@pytest.mark.parametrize("kind", KINDS)
def test_threads_that_share_a_pass(make: Callable[[str], TupleLoader], kind: str) -> None:
    with make(kind) as alone, make(kind) as shared:
        epoch = sums([images for images, _ in alone])
        one_pass = iter(shared)
        found = in_threads(lambda: [images for images, _ in one_pass])
    assert sorted(chain(*map(sums, found))) == sorted(epoch)  # every batch once


def test_closed_in_the_middle_of_a_wait(make: Callable[[str], TupleLoader]) -> None:
    loader = make("cpu")
    executor = loader.loader._prefetcher._executor
    plan = loader.loader.planner.group(0, 0, 0)
    for _ in range(40):
        executor.submit(plan)
    executor._workers._close()  # as a signal handler of the waiting thread does; some of the work was not begun
    with pytest.raises(RsbdaliError, match="closed"):
        [executor.collect() for _ in range(40)]
    loader.close()


FORK = """
import faulthandler, os, sys
import rsbdali
data = sys.argv[1]
common = dict(device="cpu", num_workers=2)
randaugment = dict(auto_augment="rand-m9-mstd0.5-inc1", **common)
makers = dict(
    cpu=lambda: rsbdali.create_loader(data, 32, 4, True, decode="cpu", **randaugment),
    graph=lambda: rsbdali.create_loader(data, 32, 4, True, decode="graph", **randaugment),
    eval=lambda: rsbdali.create_loader(data + "/train", 32, 4, **common),
)
for kind, make in makers.items():
    loader = make()
    passing = iter(loader)
    next(passing)
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(30, exit=True)  # a hang is a failure, not a wait
        for use in (lambda: next(passing), lambda: iter(loader), lambda: next(iter(loader.loader)), make):
            try:
                use()
            except rsbdali.RsbdaliError as error:
                print(error, flush=True)
        loader.state_dict()
        loader.close()
        del passing, loader
        sys.exit(7)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("parent", code, sum(1 for _ in passing), sum(1 for _ in loader), flush=True)
    loader.close()
"""
ONE_EACH = "make one in each process (state_dict() and load_state_dict() take its place along)"


def test_forked_children_are_told_what_to_do(image_tree: Callable[..., Path]) -> None:
    data = image_tree(classes=2, per_class=8).parent
    done = subprocess.run([sys.executable, "-c", FORK, str(data)], capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    lines = done.stdout.splitlines()
    assert len(lines) == 3 * 5
    for *used, made, parent in (lines[:5], lines[5:10], lines[10:]):
        assert all(line.startswith("this loader was made in process") and line.endswith(ONE_EACH) for line in used)
        assert made.endswith("start processes by spawn or forkserver, or before the first loader is made")
        assert parent == "parent 7 3 4"


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_copies_are_refused_in_one_line(make: Callable[[str], TupleLoader], copied: Callable[[Any], Any]) -> None:
    with make("cpu") as train, make("eval") as evaluation:
        for loader in (train, train.loader, evaluation.loader):
            with pytest.raises(TypeError, match=r"cannot be pickled or copied.*make one in each process") as told:
                copied(loader)
            assert isinstance(told.value, RsbdaliError)
        assert len(pickle.loads(pickle.dumps(train.loader.planner)).batch(0, 0)) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_dropped_loader_is_gone_at_once(make: Callable[[str], TupleLoader], kind: str) -> None:
    make(kind).close()  # compiles
    threads = set(threading.enumerate())
    gc.collect()
    gc.disable()  # so that a circle of references would show
    try:
        loader = make(kind)
        passing = iter(loader)
        next(passing)
        below = loader.loader
        parts = [weakref.ref(part) for part in (loader, below, below._prefetcher, below._prefetcher._executor)]
        del loader, passing, below
        assert [part() for part in parts] == [None] * 4
    finally:
        gc.enable()
    if kind == "cpu":
        assert set(threading.enumerate()) <= threads


def test_the_collector_may_end_a_loader_in_a_thread_of_its_own(
    make: Callable[[str], TupleLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, dropped, reads = ImageIndex.read_bytes, threading.Event(), count()

    def read_bytes(self: ImageIndex, i: int) -> Any:
        if next(reads) >= 4:  # of the second batch, which is made ahead
            dropped.wait(30)
            gc.collect()
        return read(self, i)

    monkeypatch.setattr(ImageIndex, "read_bytes", read_bytes)
    gc.disable()
    try:
        circle: list[Any] = [make("cpu")]
        circle.append(circle)
        next(iter(circle[0]))
        workers = circle[0].loader._prefetcher._executor._workers._threads
        executor = weakref.ref(circle[0].loader._prefetcher._executor)
        del circle
        dropped.set()
        for worker in workers:
            worker.join(30)
    finally:
        gc.enable()
    assert executor() is None
    assert not any(worker.is_alive() for worker in workers)


class Numbers:
    """A reader whose images are their numbers."""

    def read(self, image: StoredImage) -> bytes:
        return bytes([image.offset])

    def fetch_ahead(self, requests: Iterable[ReadRequest]) -> None:
        """Nothing is far away."""

    def close(self) -> None:
        """Nothing is open."""


def test_readers_with_threads_begin_anew_in_a_forked_child() -> None:
    reader, images = AheadReader(Numbers(), threads=1), [StoredImage("", 0, number, 1) for number in range(4)]
    reader.fetch_ahead([ReadRequest(images[0])])
    assert reader.read(images[0]) == b"\0"
    with reader._lock:  # as another thread of the parent may hold it
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # a hang is a failure, not a wait
            reader.fetch_ahead(map(ReadRequest, images))
            os._exit(sum(reader.read(image)[0] for image in images))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 + 1 + 2 + 3
    reader.close()
