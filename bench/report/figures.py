"""From rounds to the figures of a report, and the report as JSON."""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsbdali.bench.measure.meter import Round

RUNGS = ("read", "decode", "crop+resize", "RandAugment", "mix+normalise", "on device")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage's own cost, and the rung's rate with everything below it.

    Attributes:
        name: of `RUNGS`.
        cpu_us: CPU microseconds an image of this stage alone (the difference of two measurements: noise can make it
            slightly negative).
        cumulative_cpu_us: of all stages up to this one.
        images_per_s: of all stages up to this one.
        gpu_us: GPU microseconds an image of this stage alone; None on a CPU.
    """

    name: str
    cpu_us: float
    cumulative_cpu_us: float
    images_per_s: float
    gpu_us: float | None


def ladder(
    names: Sequence[str], cpu_us: Sequence[float], rate: Sequence[float], gpu_us: Sequence[float] | None
) -> tuple[Stage, ...]:
    """Stages from the cumulative figures of their rungs, lowest first."""
    gpu: list[float | None] = [None] * len(names) if gpu_us is None else list(np.diff(gpu_us, prepend=0.0))
    own = np.diff(cpu_us, prepend=0.0)
    return tuple(
        Stage(name=name, cpu_us=float(mine), cumulative_cpu_us=total, images_per_s=per_s, gpu_us=on_gpu)
        for name, mine, total, per_s, on_gpu in zip(names, own, cpu_us, rate, gpu, strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, least and most of a figure."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of one or more values."""
        return cls(median=statistics.median(values), min=min(values), max=max(values))


@dataclass(frozen=True, kw_only=True)
class LoaderFigures:
    """One contestant's rounds.

    Attributes:
        name: rsbdali, timm, …
        rounds: in the order they were run.
        note: what a reader should know; may be empty.
    """

    name: str
    rounds: tuple[Round, ...]
    note: str = ""

    @property
    def images_per_s(self) -> Spread:
        """Over rounds."""
        return Spread.of([r.images_per_s for r in self.rounds])

    @property
    def cpu_us_per_image(self) -> float:
        """Median over rounds of the CPU microseconds an image."""
        return statistics.median(r.cpu_us_per_image for r in self.rounds)

    @property
    def wait_ms(self) -> Spread:
        """Milliseconds that a consumer which does nothing waits for a batch: what stands between two batches."""
        return Spread.of([1e3 * wait for r in self.rounds for wait in r.wait_s])

    @property
    def memory_mib(self) -> float:
        """Most host memory (PSS of all its processes) at the end of a round, MiB."""
        return max(r.memory_bytes for r in self.rounds) / 2**20


def ratio(ours: Sequence[Round], others: Sequence[Round]) -> float:
    """Median over rounds of our images/s by theirs in the same round."""
    pairs = zip(ours, others, strict=True)
    return statistics.median(mine.images_per_s / theirs.images_per_s for mine, theirs in pairs)


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """A model's step: median, least and most images a second over windows, and the setting they were taken in."""

    name: str
    median: float
    min: float
    max: float
    batch_size: int
    dtype: str
    memory_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """Everything a run of bench-loader found.

    Attributes:
        machine: `machine.machine_record()`.
        config: what was measured: recipe, sizes, batch, workers, device, rounds, data.
        results: a contestant each, ours first.
        skipped: peers that did not take part, with the reason.
        ratio_to: our images/s by another's, round by round, median.
        stages: the ladder; empty when not asked for.
        model: the model's step; None when not asked for.
        verdict: a sentence.
    """

    machine: dict[str, Any]
    config: dict[str, Any]
    results: tuple[LoaderFigures, ...]
    skipped: dict[str, str]
    ratio_to: dict[str, float]
    stages: tuple[Stage, ...]
    model: ModelFigures | None
    verdict: str


def to_json(report: BenchReport) -> dict[str, Any]:
    """The report as plain JSON values."""
    return {
        "machine": report.machine,
        "config": report.config,
        "results": [_result(figures) for figures in report.results],
        "skipped": report.skipped,
        "ratio_to": report.ratio_to,
        "stages": [dataclasses.asdict(stage) for stage in report.stages],
        "model": dataclasses.asdict(report.model) if report.model else None,
        "verdict": report.verdict,
    }


def _result(figures: LoaderFigures) -> dict[str, Any]:
    waits = sorted(1e3 * wait for r in figures.rounds for wait in r.wait_s)
    return {
        "name": figures.name,
        "images_per_s": dataclasses.asdict(figures.images_per_s),
        "cpu_us_per_image": figures.cpu_us_per_image,
        "wait_ms_per_batch": dataclasses.asdict(figures.wait_ms) | {"p95": waits[int(0.95 * (len(waits) - 1))]},
        "memory_mib": figures.memory_mib,
        "note": figures.note,
        "rounds": [
            {"images": r.images, "seconds": r.seconds, "cpu_s": r.cpu_s, "images_per_s": r.images_per_s}
            for r in figures.rounds
        ],
    }
