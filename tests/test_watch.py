"""`rsbdali.watch`: planted bottlenecks are named, by a clock and a machine of the test's own; batches stay the same."""

import gc
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import rsbdali
from helpers.planted import ROWS, Cost, Gpu, Loader, Planted
from rsbdali.bench import watch_overhead
from rsbdali.errors import RsbdaliError
from rsbdali.tools.watch.machine import Machine
from rsbdali.tools.watch.timeline import GpuTimeline
from rsbdali.tools.watch.traits import rows_of, traits_of
from rsbdali.tools.watch.watched import Watched


def run(
    machine: Planted, loader: Any, step: float = 0.01, passes: int = 1, **options: Any
) -> tuple[Watched, list[str]]:
    said: list[str] = []
    watched = rsbdali.watch(loader, machine=machine.machine, say=said.append, **options)
    for _ in range(passes):
        for _ in watched:
            machine.spend(step)
    assert len(said) == passes
    return watched, said


def every(seconds: float) -> Cost:
    return lambda worker, k: seconds


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., Planted]:
    return lambda **values: Planted(tmp_path / "machine", **values)


Plant = Callable[..., Planted]


def test_a_slow_step_leaves_nothing_to_gain(planted: Plant) -> None:
    machine = planted()
    report = run(machine, Loader(machine, every(0.01)), step=0.1)[0].report()
    assert (report.cause, report.waiting, report.at_least) == ("step", 0.0, True)
    assert report.step_rate == pytest.approx(10)
    assert str(report) == (
        "Pass 1: training waited for data 0% of the time; the loader alone gives at least 80 samples/s, the step alone "
        "takes 80. The step is the limit: nothing in the loader would make training faster."
    )


def test_a_slow_reader(planted: Plant) -> None:
    machine = planted()
    machine.read = lambda: machine.now * 50 * 2**20
    report = run(machine, Loader(machine, every(0.2), cpu=0.1))[0].report()
    assert report.cause == "storage"
    assert report.waiting == pytest.approx(0.9, abs=0.01)
    assert report.loader_rate == pytest.approx(10, rel=0.05)
    assert report.step_rate == pytest.approx(100)
    assert "50 MiB/s from storage" in str(report)
    assert "pack it into shards" in str(report)


def test_too_few_workers(planted: Plant) -> None:
    machine = planted()
    report = run(machine, Loader(machine, every(0.06)), step=0.01)[0].report()  # a batch in 30 ms, a step in 10
    assert report.cause == "workers"
    assert "its 2 workers are busy 100% of the time and 14.0 of 16 cores are free" in str(report)
    assert "num_workers=7" in str(report)  # 6 just keep up


def test_more_workers_than_there_are_cores_is_no_advice(planted: Plant) -> None:
    machine = planted(cores=4)
    assert "num_workers=4 (9 would be needed)" in run(machine, Loader(machine, every(0.08)))[1][0]


@pytest.mark.parametrize(("cpu", "cause"), [(1.0, "workers"), (0.1, "storage")])
def test_batches_made_in_the_training_loop(planted: Plant, cpu: float, cause: str) -> None:
    machine = planted()
    report = run(machine, Loader(machine, every(0.02), workers=0, cpu=cpu), step=0.01)[0].report()
    assert (report.cause, report.at_least) == (cause, False)
    assert report.loader_rate == pytest.approx(50)
    assert ("num_workers=3 makes them meanwhile" if cpu == 1 else "workers would read meanwhile") in str(report)


@pytest.mark.parametrize("throttled", [False, True])
def test_a_planted_quota(planted: Plant, throttled: bool) -> None:
    machine = planted(quota=4)
    machine.throttled = throttled
    loader = Loader(machine, every(0.08), workers=4, cpu=0.7 if throttled else 1.0)
    report = run(machine, loader)[0].report()
    assert report.cause == "quota"
    assert "CPU quota of 4 cores is reached (16 are shown)" in str(report)
    wide = planted(quota=16)
    assert run(wide, Loader(wide, every(0.08), workers=4))[0].report().cause == "workers"


@pytest.mark.parametrize(("workers", "others"), [(4, 0.0), (2, 2.0)])
def test_all_cores_are_busy(planted: Plant, workers: int, others: float) -> None:
    machine = planted(cores=4)
    machine.others = others
    report = run(machine, Loader(machine, every(0.1), workers=workers))[0].report()
    assert report.cause == "cores"
    assert ("2.0 of them by other programs" in str(report)) == (others > 0)


def test_workers_that_wait_for_files_are_not_short_of_cores_that_others_use(planted: Plant) -> None:
    machine = planted(cores=4)
    machine.others = 3.9
    assert run(machine, Loader(machine, every(0.1), cpu=0.05))[0].report().cause == "storage"


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_one_slow_worker(planted: Plant, slow: int) -> None:
    machine = planted()
    report = run(machine, Loader(machine, lambda w, k: 0.2 if w == slow else 0.01, workers=3))[0].report()
    assert report.cause == "one worker"
    assert f"worker {slow} is slow, the 2 others' batches are ready" in str(report)


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_workers_in_lockstep_are_all_slow(planted: Plant, workers: int) -> None:
    """Their batches come together, so that one in `workers` is waited for: the pattern of a slow one."""
    machine = planted()
    watched, _ = run(machine, Loader(machine, every(0.2), workers=workers))
    assert watched.report().cause == "workers"


def test_workers_that_start_anew_in_each_pass(planted: Plant) -> None:
    machine = planted()
    loader = Loader(machine, every(0.01), start=5.0)
    report = run(machine, loader, step=0.1)[0].report()
    assert report.cause == "start"
    assert "The first batch took 5 s, 30% of the pass: persistent_workers=True keeps them" in str(report)
    loader.persistent_workers = True
    assert "persistent" not in run(machine, loader, step=0.1)[1][0]


def test_files_that_the_first_epoch_brings_into_the_page_cache(planted: Plant) -> None:
    machine = planted()
    costs = iter([0.2, 0.01, 0.01])
    loader = Loader(machine, every(0.2), cpu=0.05)
    said: list[str] = []
    watched = rsbdali.watch(loader, machine=machine.machine, say=said.append)
    for cost in costs:
        watched.cost = every(cost)
        for _ in watched:
            machine.spend(0.02)
    assert watched.report().cause == "step"
    assert "from storage" not in said[0]
    assert "first pass" not in said[0]
    for line in said[1:]:
        assert "The first pass waited 80%, most likely for files that are in the page cache since" in line


def test_a_step_that_got_longer_is_no_page_cache(planted: Plant) -> None:
    machine = planted()
    loader, said = Loader(machine, every(0.2), cpu=0.05), list[str]()
    watched = rsbdali.watch(loader, machine=machine.machine, say=said.append)
    for step in (0.02, 0.5):
        for _ in watched:
            machine.spend(step)
    assert "first pass" not in said[1]


def test_no_difference_from_the_first_pass(planted: Plant) -> None:
    machine = planted()
    rng = np.random.default_rng(0)
    watched, said = run(machine, Loader(machine, lambda w, k: rng.uniform(0.1, 0.3), cpu=0.05), passes=2)
    assert watched.report().cause == "storage"
    assert "No difference from the first pass is shown (9" in said[1]


def test_a_loader_that_tells_nothing(planted: Plant) -> None:
    machine = planted()

    class Unknown:
        def __iter__(self) -> Iterator[str]:
            for _ in range(100):
                machine.spend(0.03)
                yield "text"

    report = run(machine, Unknown())[0].report()
    assert (report.cause, report.at_least) == ("data", True)
    assert "at least 25 batches/s, the step alone takes 100" in str(report)
    assert "why is not shown" in str(report)
    made_here = run(machine, (np.zeros((4, 1)) for _ in iter(Unknown())))[0].report()
    assert (made_here.cause, made_here.at_least) == ("storage", False)


def test_few_batches_tell_nothing(planted: Plant) -> None:
    machine = planted()
    report = run(machine, Loader(machine, every(1), batches=9))[0].report()
    assert report.cause == "too short"
    assert str(report) == "Pass 1: 9 batches are too few to show what waits for what."
    one = run(machine, Loader(machine, every(1), batches=1))[0].report()
    assert str(one) == "Pass 1: 1 batch is too few to show what waits for what."


def test_an_empty_loader_has_no_batches() -> None:
    said: list[str] = []
    assert list(rsbdali.watch([], say=said.append)) == []
    assert said == ["Pass 1: the loader has given no batches."]


def test_a_short_pass_does_not_show_why(planted: Plant) -> None:
    machine = planted()
    report = run(machine, Loader(machine, every(0.002), batches=20), step=0.0005)[0].report()
    assert (report.cause, report.waiting > 0.3) == ("data", True)
    assert "too short to see why" in str(report)


def test_a_probe_finds_no_difference(planted: Plant) -> None:
    machine, rng = planted(), np.random.default_rng(0)
    loader, said, seen = Loader(machine, every(0.01)), list[str](), []
    watched = rsbdali.watch(loader, machine=machine.machine, say=said.append, probe=20)
    for images, _ in watched:
        seen.append(int(images[0, 0]))
        machine.spend(rng.uniform(0.09, 0.11))
    assert seen == [*range(120), *[119] * 20]  # len() is still 120
    assert said[0].endswith("No difference between training and the step alone is shown.")
    assert len(list(watched)) == 120  # the first pass alone is probed


def test_a_probe_shows_a_step_that_its_loader_slows_down(planted: Plant) -> None:
    machine = planted()
    loader = Loader(machine, every(0.01))
    loader.batches[-1] = tuple(part[:3] for part in loader.batches[-1])  # the last one is smaller: it is not replayed
    seen = []
    watched = rsbdali.watch(loader, machine=machine.machine, say=lambda _: None, probe=12)
    for k, (images, _) in enumerate(watched):
        seen.append(len(images))
        machine.spend(0.15 if k < 120 else 0.1)
    assert seen[119:] == [3, *[ROWS] * 12]
    assert watched.report().step_rate == pytest.approx(10)
    assert "The step takes 1.50 × as long beside the loader as alone." in str(watched.report())


def on_gpu(planted: Plant, patch: pytest.MonkeyPatch, cost: float, step: float) -> tuple[Watched, Gpu]:
    machine = planted()
    gpu = Gpu(machine, patch)
    watched = rsbdali.watch(Loader(machine, every(cost), cpu=0.05), machine=machine.machine, say=lambda _: None)
    for k, _ in enumerate(watched):
        gpu.step(step)
        if k % 20 == 0:
            machine.now = max(machine.now, gpu.free_at)  # the loop reads its loss
    return watched, gpu


def test_a_host_that_waits_while_the_gpu_works_loses_nothing(planted: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    watched, gpu = on_gpu(planted, monkeypatch, cost=0.1, step=0.06)  # a batch each 50 ms
    report = watched.report()
    assert report.cause == "step"
    assert report.step_rate == pytest.approx(1 / 0.06, rel=0.02)
    assert "the GPU waited for data" in str(report)
    assert "pin_memory=True" in str(report)
    assert gpu.made < 60  # events are used again


def test_a_gpu_that_waits_for_data(planted: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    report = on_gpu(planted, monkeypatch, cost=0.1, step=0.02)[0].report()
    assert report.cause == "storage"
    assert report.waiting == pytest.approx(0.6, abs=0.03)
    assert report.step_rate == pytest.approx(50, rel=0.05)


def test_events_that_have_not_passed_are_left_alone() -> None:
    now = 0.0

    class Event:
        def record(self) -> None:
            self.at = now + 2.5

        def query(self) -> bool:
            return self.at <= now

        def elapsed_time(self, end: "Event") -> float:
            return 1e3 * (end.at - self.at)

    timeline = GpuTimeline(Event)
    for now in (0.0, 1.0, 2.0, 3.0):  # noqa: B007 - the clock that the events read
        timeline.mark()
    assert (list(timeline.wait_s), list(timeline.step_s)) == ([], [])
    now = 4.6
    timeline.read()
    assert (list(timeline.wait_s), list(timeline.step_s)) == ([1.0], [1.0])


def test_batches_and_attributes_pass_through() -> None:
    plain = DataLoader(TensorDataset(torch.arange(20)), batch_size=4)
    watched = rsbdali.watch(plain, say=lambda _: None)
    assert len(watched) == 5
    assert bool(watched)
    assert [b[0].tolist() for b in watched] == [b[0].tolist() for b in plain]
    assert watched.batch_size == 4
    assert watched.dataset is plain.dataset
    watched.tag = "mine"
    assert plain.tag == "mine"  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        watched.nothing_of_the_kind  # noqa: B018
    with pytest.raises(TypeError, match="'DataLoader' object is not an iterator"):
        next(watched)


def test_a_loader_that_is_its_own_iterator_and_a_context() -> None:
    class Dali:
        def __init__(self) -> None:
            self.left, self.log = 3, list[str]()

        def __iter__(self) -> "Dali":
            return self

        def __next__(self) -> list[dict[str, torch.Tensor]]:
            if not self.left:
                raise StopIteration
            self.left -= 1
            return [{"data": torch.zeros(4, 1)}]

        def reset(self) -> None:
            self.left = 3

        def __enter__(self) -> "Dali":
            self.log.append("in")
            return self

        def __exit__(self, *_: object) -> None:
            self.log.append("out")

    loader = Dali()
    with rsbdali.watch(loader, say=lambda _: None) as watched:
        next(watched)
        next(watched)
        next(watched)
        with pytest.raises(StopIteration):
            next(watched)
        watched.reset()
        assert len(list(watched)) == 3
    assert loader.log == ["in", "out"]


def test_a_pass_that_is_left_ends_its_workers_and_can_be_judged(planted: Plant) -> None:
    machine = planted()
    said: list[str] = []
    watched = rsbdali.watch(Loader(machine, every(0.2)), machine=machine.machine, say=said.append)
    with pytest.raises(RsbdaliError, match="no pass over the loader has begun"):
        watched.report()
    batches = iter(watched)
    inner = weakref.ref(batches._iterator)
    for _ in range(60):
        next(batches)
        machine.spend(0.01)
    machine.worker_cpu = lambda pid: 0.0  # refers to the iterator
    del batches
    gc.collect()
    assert inner() is None
    assert said == []
    assert watched.report().waiting > 0.5


def test_the_line_goes_to_standard_error_of_rank_0(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = rsbdali.watch([torch.zeros(2, 1)] * 3)
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert len(list(watched)) == 3
    assert capsys.readouterr().err == "rsbdali watch: Pass 2: 3 batches are too few to show what waits for what.\n"


@pytest.mark.parametrize(
    ("loader", "probe", "words"), [(7, 0, "int cannot be iterated"), ([], -1, "probe=-1"), ([], "x", "probe='x'")]
)
def test_mistakes(loader: Any, probe: Any, words: str) -> None:
    with pytest.raises(RsbdaliError, match=words):
        rsbdali.watch(loader, probe=probe)


def test_rows_of_batches_of_all_kinds() -> None:
    image_N = torch.zeros(5, 3)
    for batch in (
        image_N,
        (image_N, 1),
        [{"data": image_N, "label": 0}],
        {"x": [image_N]},
        SimpleNamespace(images=image_N),
    ):
        assert rows_of(batch) == 5
    assert [rows_of(batch) for batch in ("text", 3, [], {}, torch.tensor(1.0))] == [None] * 5


def test_what_loaders_say_of_themselves() -> None:
    plain = DataLoader(TensorDataset(torch.arange(4)), num_workers=1, prefetch_factor=5)
    traits = traits_of(plain)
    assert (traits.workers, traits.prefetch, traits.processes, traits.persistent) == (1, 5, True, False)
    ours = traits_of(SimpleNamespace(loader=SimpleNamespace(num_threads=6)))
    assert (ours.workers, ours.option, ours.processes) == (6, "num_workers", False)
    dali = traits_of(SimpleNamespace(_pipes=[SimpleNamespace(num_threads=2)] * 2))
    assert (dali.workers, dali.option) == (4, "num_threads")
    assert traits_of([]).workers is None


def test_this_machine_can_be_read() -> None:
    machine = Machine()
    first, last = machine.counters([os.getpid()]), machine.counters([os.getpid(), 2**22 + 1])
    assert last.workers_cpu_s >= first.workers_cpu_s > 0
    assert last.busy_s >= first.busy_s > 0
    usage = machine.usage(first, last)
    assert usage.cores == len(os.sched_getaffinity(0))
    assert 0 < usage.limit <= usage.cores


def test_it_needs_neither_dali_nor_torch() -> None:
    watch_modules = [name for name in sys.modules if name.startswith("rsbdali.tools.watch")]
    for name in watch_modules:
        source = Path(str(sys.modules[name].__file__)).read_text(encoding="utf-8")
        assert "import torch" not in source
        assert "nvidia" not in source


def test_its_overhead_is_measured() -> None:
    found = watch_overhead.measure(batches=50, rounds=2)
    assert found.added_us[1] <= found.added_us[0] <= found.added_us[2]
    assert found.look_us > 0
