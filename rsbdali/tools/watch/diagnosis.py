"""From the figures of a pass to a sentence: what waited for what, and what would help. Pure functions."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rsbdali.errors import counted
from rsbdali.tools.watch.figures import BLOCKS, PassFigures, blocks, differ, slow_worker
from rsbdali.tools.watch.machine import Usage

WAITING = 0.05  # share of waiting from which data holds training back
FEW = 2 * BLOCKS  # batches below which no cause can be named
START = 0.1  # share of a pass that its workers' start may take
BUSY = 0.6  # workers that compute for less of their time wait for something else
FULL = 0.9  # of the cores
LACKING = 0.25  # cores that workers wait for; less is the scheduler's usual unevenness
NOTICED_CORES = 0.1
LONGER = 1.2  # a step from then on is another one
NOTICED = 1.05  # a step that takes less longer beside its loader is not worth a word
THROTTLED = 0.1  # share of the quota's periods that were used up before their end
SPARE = 1.1  # a loader this much faster than the step leaves room for the unevenness of both

Cause = Literal["too short", "step", "start", "one worker", "quota", "cores", "workers", "storage", "data"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a pass showed. `str()` of it is the sentence.

    Attributes:
        cause: what holds training back: `step` (nothing in the loader), `start` of the workers, `one worker`, the
            container's `quota`, all `cores` busy, too few `workers`, `storage`, `data` where the reason is not shown,
            or the pass was `too short`.
        waiting: share of the time in which training waited for data.
        loader_rate: batches a second that the loader alone gives; None where not known.
        at_least: it is as fast as that or faster: it was never asked for more.
        step_rate: batches a second that the step alone takes; None without batches.
        text: the sentence.
    """

    cause: Cause
    waiting: float
    loader_rate: float | None
    at_least: bool
    step_rate: float | None
    text: str

    def __str__(self) -> str:
        return self.text


def diagnose(now: PassFigures, first: PassFigures | None = None) -> Report:
    """Judge a pass.

    Args:
        now: its figures.
        first: those of the loader's first pass, where `now` is a later one.
    """
    if len(now.wait_N) < FEW or now.seconds <= 0:
        text = f"Pass {now.number}: {_too_few(now.given)}."
        return Report(cause="too short", waiting=0.0, loader_rate=None, at_least=False, step_rate=None, text=text)
    cause = _cause(now)
    loader, at_least = _loader_rate(now)
    step = _rate(now.replay_R if len(now.replay_R) else now.step_N)
    sentences = [
        _head(now, loader, at_least, step),
        _advice(now, cause, step),
        _since_first(now, first),
        _beside_loader(now),
        _pinning(now),
    ]
    return Report(
        cause=cause,
        waiting=now.waiting,
        loader_rate=loader,
        at_least=at_least,
        step_rate=step,
        text=" ".join(f"{each[0].upper()}{each[1:]}." for each in sentences if each),
    )


def _too_few(given: int) -> str:
    if not given:
        return "the loader has given no batches"
    return f"{counted(given, 'batch is', 'batches are')} too few to show what waits for what"


def _cause(now: PassFigures) -> Cause:
    if now.waiting < WAITING:
        return "start" if _start(now) > START else "step"
    if slow_worker(now) is not None:
        return "one worker"
    if (usage := now.usage) is None:
        return "data"
    if _is_throttled(usage):
        return "quota"
    busy = _busy(now)
    if usage.cores_busy >= FULL * usage.cores and (usage.cores_lacking >= LACKING or (busy or 0) >= BUSY):
        return "cores"
    if busy is None:
        return "data"
    return "workers" if busy >= BUSY else "storage"


def _start(now: PassFigures) -> float:
    """Share of the pass until its first batch."""
    return now.start_s / (now.start_s + now.seconds)


def _is_throttled(usage: Usage) -> bool:
    """Whether the container's quota is what slows the cores down."""
    if usage.quota is None or usage.quota >= usage.cores:
        return False
    return usage.throttled >= THROTTLED or usage.cores_used >= FULL * usage.quota


def _busy(now: PassFigures) -> float | None:
    """Share of their time in which the workers compute; None where their number is not known."""
    workers, usage = now.traits.workers, now.usage
    if workers is None or usage is None:
        return None
    cores = usage.worker_cores if now.traits.processes else now.wait_cores
    return min(1.0, cores / max(1, workers))


def _loader_rate(now: PassFigures) -> tuple[float, bool]:
    """Batches a second of the loader alone, and whether that is only the least it can be."""
    if now.traits.workers == 0:
        return _rate(now.wait_N), False  # it works only while it is asked
    is_known = now.traits.workers is not None and now.waiting >= WAITING
    return 1 / now.period_s, not is_known


def _rate(seconds_N: np.ndarray) -> float:
    return 1 / max(float(seconds_N.mean()), 1e-9)  # a loop that does nothing with its batches takes no time for a step


def _head(now: PassFigures, loader: float, at_least: bool, step: float) -> str:
    unit = "batches" if now.rows is None else "samples"
    loader, step = ((now.rows or 1) * rate for rate in (loader, step))
    alone = "at least " if at_least else ""
    return (
        f"pass {now.number}: {'the GPU' if now.on_gpu else 'training'} waited for data {_share(now.waiting)} of the "
        f"time; the loader alone gives {alone}{_number(loader)} {unit}/s, the step alone takes {_number(step)}"
    )


def _advice(now: PassFigures, cause: Cause, step: float) -> str:
    times = 1 / (1 - now.waiting) if now.waiting < 1 else 0.0
    gain = f"{times:.2g} ×" if 0 < times < 100 else f"{_number(times)} ×" if times else "much"
    if cause == "step":
        return "the step is the limit: nothing in the loader would make training faster"
    if cause == "start":
        keep = ": persistent_workers=True keeps them" if not now.traits.persistent else ""
        return f"the first batch took {now.start_s:.2g} s, {_share(_start(now))} of the pass{keep}"
    if cause == "data":
        why = "the pass was too short to see why" if now.usage is None else "why is not shown"
        return f"data holds training back ({gain} faster without); {why}"
    return f"data holds training back ({gain} faster without): {_remedy(now, cause, step)}"


def _remedy(now: PassFigures, cause: Cause, step: float) -> str:
    if cause == "one worker":
        count = (now.traits.workers or 0) - 1
        others = "the other one's" if count == 1 else f"the {count} others'"
        return (
            f"worker {slow_worker(now)} is slow, {others} batches are ready: look at its part of the data, "
            "or at what shares its core (in_order=False lets the others go first)"
        )
    usage = now.usage
    assert usage is not None
    if cause == "quota":
        return (
            f"the container's CPU quota of {usage.quota:g} cores is reached ({usage.cores} are shown): "
            "give it more; more workers would not help"
        )
    if cause == "cores":
        foreign = max(0.0, usage.cores_busy - usage.cores_used)
        whose = f", {foreign:.1f} of them by other programs" if foreign >= NOTICED_CORES else ""
        cores = f"all {usage.cores} cores are" if usage.cores > 1 else "the one core is"
        return f"{cores} busy{whose}: more workers would not help, less work an image would"
    if cause == "workers":
        return _more_workers(now, step)
    return _slow_storage(now)


def _more_workers(now: PassFigures, step: float) -> str:
    usage, workers, option = now.usage, now.traits.workers, now.traits.option
    assert usage is not None
    assert workers is not None
    most = math.floor(usage.limit)
    if workers == 0:
        wanted = min(most, max(1, math.ceil(SPARE * step * float(now.wait_N.mean()))))
        how = f"{option}={wanted} makes them meanwhile" if option else "a thread or process would make them meanwhile"
        return f"batches are made while training waits: {how}"
    wanted = math.ceil(SPARE * workers * step * now.period_s)
    enough = "" if wanted <= most else f" ({wanted} would be needed)"
    how = f", {option}={max(workers + 1, min(most, wanted))}{enough}" if option else ""
    whose = "its worker is" if workers == 1 else f"its {workers} workers are"
    return (
        f"{whose} busy {_share(_busy(now) or 0)} of the time and {usage.cores_free:.1f} of "
        f"{usage.limit:g} cores are free: more workers help{how}"
    )


def _slow_storage(now: PassFigures) -> str:
    usage = now.usage
    assert usage is not None
    read = usage.read_bytes_per_s / 2**20
    rate = f" ({read:.3g} MiB/s from storage)" if read >= 1 else ""
    busy = _share(_busy(now) or 0)
    who = f"its workers compute only {busy} of the time, so they wait" if now.traits.workers else "it waits"
    more = (
        "more workers read more at a time" if now.traits.workers else "workers would read meanwhile, several at a time"
    )
    return f"{who}, most likely for files{rate}: bring the data nearer or pack it into shards; {more}"


def _since_first(now: PassFigures, first: PassFigures | None) -> str:
    if first is None or len(first.wait_N) < FEW or first.waiting < WAITING:
        return ""
    if not differ(first.shares(), now.shares()):
        return f"no difference from the first pass is shown ({_share(first.waiting)})"
    is_longer = now.step_N.mean() > LONGER * first.step_N.mean()  # and so hides more of the same waiting
    if is_longer or now.waiting > first.waiting / 2:
        return ""
    return f"the first pass waited {_share(first.waiting)}, most likely for files that are in the page cache since"


def _beside_loader(now: PassFigures) -> str:
    if len(now.replay_R) < 2:
        return ""
    replay = blocks(now.replay_R)
    if not differ(blocks(now.wait_N + now.step_N), replay):
        return "no difference between training and the step alone is shown"
    slower = float(now.step_N.mean() / now.replay_R.mean())
    if slower >= NOTICED and differ(blocks(now.step_N), replay):
        return f"the step takes {slower:.2f} × as long beside the loader as alone"
    return ""


def _pinning(now: PassFigures) -> str:
    if not now.pageable:
        return ""
    return (
        "batches come in pageable memory: pin_memory=True, and non_blocking=True where they are copied, saves waiting"
    )


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.095 or share == 0 else f"{share:.1%}"


def _number(value: float) -> str:
    """Three significant digits, thousands by commas."""
    return f"{round(value, min(0, 3 - len(str(int(value))))):,.0f}" if value >= 100 else f"{value:.3g}"
