"""From rounds to the figures of a report, and the report as JSON."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rsbdali.bench.measure.meter import Round
from rsbdali.bench.report.presence import Presence

STAGES = ("read", "decode", "crop+resize", "RandAugment", "mix+normalize", "on device")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage's own cost, and the rate of all stages up to it.

    Attributes:
        name: of `STAGES`.
        cpu_us: CPU microseconds an image of this stage alone: the difference of two measurements.
        below_noise: in one round at least all up to this stage cost no more than all before it, so `cpu_us` (it may
            be negative) says nothing but that the stage costs little.
        cumulative_cpu_us: of all stages up to this one.
        images_per_s: of all stages up to this one.
        gpu_us: GPU microseconds an image of this stage alone; None on a CPU.
    """

    name: str
    cpu_us: float
    below_noise: bool
    cumulative_cpu_us: float
    images_per_s: float
    gpu_us: float | None


def stage_breakdown(stages: Sequence["LoaderFigures"], gpu_us: Sequence[float] | None) -> tuple[Stage, ...]:
    """Each stage's own cost, from interleaved rounds of all stages up to it, and how long each keeps the GPU busy."""
    gpu: list[float | None] = [None] * len(stages) if gpu_us is None else list(np.diff(gpu_us, prepend=0.0))
    own = np.diff([stage.cpu_us_per_image for stage in stages], prepend=0.0)
    least = np.diff([[r.cpu_us_per_image for r in stage.rounds] for stage in stages], axis=0, prepend=0.0).min(axis=1)
    return tuple(
        Stage(
            name=stage.name.removeprefix("stage:"),
            cpu_us=float(mine),
            below_noise=bool(min(mine, lowest) <= 0),
            cumulative_cpu_us=stage.cpu_us_per_image,
            images_per_s=stage.images_per_s.median,
            gpu_us=on_gpu,
        )
        for stage, mine, lowest, on_gpu in zip(stages, own, least, gpu, strict=True)
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
    """One candidate's rounds.

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
        """Milliseconds that a consumer which does nothing waits for a batch: the time between two batches."""
        return Spread.of([1e3 * wait for r in self.rounds for wait in r.wait_s])

    @property
    def presence(self) -> Presence:
        """What it had of the machine."""
        return Presence.of(self.rounds)

    @property
    def memory_mib(self) -> float:
        """Most host memory (PSS of all its processes) at the end of a round, MiB."""
        return max(r.memory_bytes for r in self.rounds) / 2**20


def ratio(ours: Sequence[Round], others: Sequence[Round]) -> float:
    """Median over rounds of our images/s by theirs in the same round."""
    pairs = zip(ours, others, strict=True)
    return statistics.median(mine.images_per_s / theirs.images_per_s for mine, theirs in pairs)


def cpu_ratio(ours: Sequence[Round], others: Sequence[Round]) -> float | None:
    """Median over rounds of the ratio of their CPU time an image to ours; None if a round was too short to measure.

    More is better for us, as with `ratio`. What else runs on the machine disturbs it less than images/s.
    """
    if not all(mine.cpu_s for mine in ours):
        return None
    pairs = zip(ours, others, strict=True)
    return statistics.median(theirs.cpu_us_per_image / mine.cpu_us_per_image for mine, theirs in pairs)


def ratios(pairs: Mapping[str, tuple[Sequence[Round], Sequence[Round]]]) -> tuple[dict[str, float], dict[str, float]]:
    """`ratio` of each pair by its name, and `cpu_ratio` of those long enough to measure."""
    by_cpu = {name: cpu_ratio(*pair) for name, pair in pairs.items()}
    return (
        {name: ratio(*pair) for name, pair in pairs.items()},
        {name: value for name, value in by_cpu.items() if value is not None},
    )


def overlap(ours: Sequence[Round], others: Sequence[Round]) -> bool:
    """Whether the ranges of images/s of two candidates' rounds have a value in common, or are of one round alone."""
    mine, theirs = (Spread.of([r.images_per_s for r in rounds]) for rounds in (ours, others))
    return len(ours) < 2 or (mine.min <= theirs.max and theirs.min <= mine.max)


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
    presence: Presence


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """Everything a run of bench-loader found.

    Attributes:
        machine: `machine.machine_record()`.
        config: what was measured: recipe, sizes, batch, workers, device, rounds, data.
        results: a candidate each, ours first.
        skipped: peers that did not take part, with the reason.
        ratio_to: our images/s by another's, round by round, median.
        cpu_ratio_to: another's CPU time an image by ours, round by round, median; without those too short to measure.
        warning: what makes the figures doubtful; may be empty.
        stages: the stage breakdown; empty when not asked for.
        model: the model's step; None when not asked for.
        verdict: a sentence.
    """

    machine: dict[str, Any]
    config: dict[str, Any]
    results: tuple[LoaderFigures, ...]
    skipped: dict[str, str]
    ratio_to: dict[str, float]
    cpu_ratio_to: dict[str, float]
    warning: str
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
        "cpu_ratio_to": report.cpu_ratio_to,
        "warning": report.warning,
        "stages": [asdict(stage) for stage in report.stages],
        "model": asdict(report.model) if report.model else None,
        "verdict": report.verdict,
    }


def _result(figures: LoaderFigures) -> dict[str, Any]:
    waits = sorted(1e3 * wait for r in figures.rounds for wait in r.wait_s)
    return {
        "name": figures.name,
        "images_per_s": asdict(figures.images_per_s),
        "cpu_us_per_image": figures.cpu_us_per_image,
        "wait_ms_per_batch": asdict(figures.wait_ms) | {"p95": waits[int(0.95 * (len(waits) - 1))]},
        "memory_mib": figures.memory_mib,
        "note": figures.note,
        **asdict(figures.presence),
        "rounds": [round_record(r) for r in figures.rounds],
    }


def round_record(measured: Round) -> dict[str, Any]:
    """A round as plain JSON values, without the single waits."""
    values = asdict(measured)
    del values["wait_s"], values["memory_bytes"]
    return values | {"images_per_s": measured.images_per_s}
