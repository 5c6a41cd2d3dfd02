"""From figures to a sentence: does data hold training back, and what would fix it? A pure function."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rsbdali.errors import counted

EASE = 1.1  # a loader this much faster than the model leaves room for the unevenness of both
SAME = 1.05  # figures closer than this are called equal
IDLE = 0.6  # a loader that uses less than this share of its threads is not short of threads


@dataclass(frozen=True, kw_only=True)
class Loader:
    """A loader's figures.

    Attributes:
        name: rsbdali, timm, …
        images_per_s: median of its rounds.
        cpu_us_per_image: CPU microseconds, all cores together.
        ours_by_it: of a peer: our images/s by its own, round by round, median; None: by the medians of both. On an
            uneven machine the two differ, and rounds side by side are the fairer comparison.
        ours_by_its_cpu: of a peer: its CPU time an image by ours, likewise; None: not known.
        overlaps: of a peer: the ranges of its rounds and of ours overlap, so no difference in images/s is shown.
        does_less: of a peer: it leaves out a part of the recipe.
    """

    name: str
    images_per_s: float
    cpu_us_per_image: float
    ours_by_it: float | None = None
    ours_by_its_cpu: float | None = None
    overlaps: bool = False
    does_less: bool = False


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model's training step alone: name and images a second on synthetic data."""

    name: str
    images_per_s: float


def verdict(
    ours: Loader, *, peers: tuple[Loader, ...] = (), model: Model | None = None, threads: int, cores: int, device: str
) -> str:
    """One sentence (or two) that answers what a reader of the table wants to know.

    Args:
        ours: the loader of this package.
        peers: other loaders measured in the same rounds with the same number of threads.
        model: the model's step measured alone on the device, None when it was not.
        threads: CPU threads (workers) each loader had.
        cores: CPU cores this process may use.
        device: `cpu` or `cuda`, where batches are made and the model runs.
    """
    if model is None:
        return _without_model(ours, peers, threads)
    # another DALI graph is no plainer than ours, and one that does less would not do
    plain = [p for p in peers if not p.name.startswith("dali") and not p.does_less]
    enough = [p for p in plain if p.images_per_s >= EASE * model.images_per_s]
    if enough:
        return _plain_would_do(ours, max(enough, key=lambda p: p.images_per_s), model, threads)
    return _against_model(ours, model, threads, cores, device)


def _without_model(ours: Loader, peers: tuple[Loader, ...], threads: int) -> str:
    cost = f"{_thousands(ours.cpu_us_per_image)} CPU-µs an image"
    figure = f"rsbdali gives {_rate(ours)} images/s with {counted(threads, 'thread')}, {cost}"
    if not peers:
        return f"{figure}; --peers timm compares it, --against MODEL says whether a model can use it."
    compared = ", ".join(_compared(ours, p) for p in peers)
    best = min(peers, key=lambda p: (p.overlaps, _ratio(ours, p)))
    if _ratio(ours, best) < 1 / SAME and not best.overlaps:
        less = ", and does less" if best.does_less else ""
        return f"{figure}: {compared}. {best.name} is the faster one here{less}."
    return f"{figure}: {compared}."


def _compared(ours: Loader, peer: Loader) -> str:
    ratio = _ratio(ours, peer)
    by_cpu = f"; {_times(peer.ours_by_its_cpu)} by CPU-µs" if peer.ours_by_its_cpu else ""
    if peer.overlaps:
        return f"no difference from {peer.name} is shown ({_rate(peer)}, the rounds overlap{by_cpu})"
    if 1 / SAME < ratio < SAME:
        return f"the same as {peer.name} ({_rate(peer)}{by_cpu})"
    return f"{_times(ratio)} {peer.name} ({_rate(peer)}{by_cpu})"


def _ratio(ours: Loader, peer: Loader) -> float:
    return peer.ours_by_it or ours.images_per_s / peer.images_per_s


def _plain_would_do(ours: Loader, peer: Loader, model: Model, threads: int) -> str:
    start = (
        f"the plain loader would do as well: {peer.name} gives {_rate(peer)} images/s with "
        f"{counted(threads, 'thread')}, {model.name} takes {_rate(model)}, so DALI brings no speed here"
    )
    saved = peer.ours_by_its_cpu or peer.cpu_us_per_image / ours.cpu_us_per_image
    return f"{start} (it uses {_times(saved)} less CPU)." if saved >= EASE else f"{start}."


def _against_model(ours: Loader, model: Model, threads: int, cores: int, device: str) -> str:
    ratio = ours.images_per_s / model.images_per_s
    figures = f"the loader gives {_rate(ours)} images/s, {model.name} takes {_rate(model)}"
    if ratio >= EASE:
        return f"{figures}: data will not hold training back ({_times(ratio)})."
    if ratio >= 1:
        return f"{figures}: data just keeps up ({_times(ratio)}), with nothing to spare."
    return f"{figures}: data holds training back ({_times(ratio)}); {_remedy(ours, model, threads, cores, device)}."


def _remedy(ours: Loader, model: Model, threads: int, cores: int, device: str) -> str:
    busy = ours.images_per_s * ours.cpu_us_per_image / 1e6 / threads
    if busy < IDLE:
        idle, limit = f"{1 - busy:.0%}", "the GPU's decoding" if device == "cuda" else "the disk"
        who = counted(threads, "thread is", "threads are")
        return f"its {who} idle {idle} of the time, so more would not help: {limit} is the limit"
    needed = math.ceil(EASE * threads * model.images_per_s / ours.images_per_s)
    have = f"this machine has {counted(cores, 'core')}" if needed > cores else f"set --workers {needed}"
    return f"at this rate a thread it would take about {counted(needed, 'thread')}, and it has {threads} ({have})"


def _rate(figures: Loader | Model) -> str:
    return _thousands(figures.images_per_s)


def _thousands(value: float) -> str:
    """Three significant digits, thousands by commas: 9,830 or 48.2."""
    if value >= 100:
        digits = 3 - len(str(int(value)))
        return f"{round(value, min(0, digits)):,.0f}"
    return f"{value:.3g}"


def _times(ratio: float) -> str:
    return f"{ratio:.2g} ×" if ratio < 10 else f"{ratio:.0f} ×"


@dataclass(frozen=True, kw_only=True)
class StepPair:
    """A step of ours and a peer's of the same kind.

    Attributes:
        ours: its name.
        images_per_s: of ours, median of its rounds.
        peer: its name.
        peer_images_per_s: of the peer, likewise.
        ratio: ours by the peer's, round by round, median.
        overlaps: the ranges of their rounds overlap.
    """

    ours: str
    images_per_s: float
    peer: str
    peer_images_per_s: float
    ratio: float
    overlaps: bool


def step_verdict(pairs: Sequence[StepPair], images_per_s: float) -> str:
    """The answer of bench-step in a sentence; without pairs, of `images_per_s` alone."""
    if not pairs:
        return f"rsbdali trains {_thousands(images_per_s)} images/s; --peers timm compares it."
    return "; ".join(_against_step(pair) for pair in pairs) + "."


def _against_step(pair: StepPair) -> str:
    rates = f"{pair.ours} trains {_thousands(pair.images_per_s)} images/s, {pair.peer}"
    figures = f"{rates} {_thousands(pair.peer_images_per_s)}"
    return f"{figures}: no difference is shown" if pair.overlaps else f"{figures}: {pair.ratio:.2f} ×"
