"""tune: the settings with which our loader is fastest on this machine, kept for `train --tuned`.

One process builds the loader with one setting after the other and measures it; `race/successive_halving.py` searches,
`race/knobs.py` says among what.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from rsbdali.bench.loader import BenchOptions, check_options, feed_spec
from rsbdali.bench.measure.meter import Round
from rsbdali.bench.race.candidate import Candidate
from rsbdali.bench.race.feeds import FeedSpec
from rsbdali.bench.race.knobs import grid, knobs, spec_of
from rsbdali.bench.race.model_step import measure_model
from rsbdali.bench.race.successive_halving import Halving, search
from rsbdali.bench.report.presence import Presence, busy_warning
from rsbdali.bench.report.verdict import Loader, Model, verdict
from rsbdali.distributed.devices import default_threads, resolve_device
from rsbdali.environment import machine_record
from rsbdali.errors import RsbdaliError, counted
from rsbdali.loader import tuned
from rsbdali.loader.decode_mode import has_jpeg_engine
from rsbdali.loader.tuned import LoaderSettings
from rsbdali.ops.backend import missing_compiler
from rsbdali.plan.augmentation import cpu_only
from rsbdali.recipe import Recipe

ROUND_S = 0.5  # of measuring; a round holds two batches at least
MODEL_S = 5.0
Say = Callable[[str], None]
By = Literal["clock", "cpu"]


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """What to tune for.

    Attributes:
        data: DIR/train/<class>/… or DIR/<class>/….
        recipe: sizes and augmentation.
        batch_size: images a batch.
        device: `cpu`, `cuda`, or `auto`.
        minutes: for the search, about. Where they are too few for all settings some are not tried, which is said.
        allow_pixels: search the decode mode too, and with a JPEG engine its share: both change pixels a little.
        against: a timm model whose training step is measured as well; None for none.
        round_s: seconds of a round.
    """

    data: Path
    recipe: Recipe
    batch_size: int = 128
    device: str = "auto"
    minutes: float = 2.0
    allow_pixels: bool = False
    against: str | None = None
    round_s: float = ROUND_S


@dataclass(frozen=True)
class Tuned:
    """What was found, and where it is kept.

    Attributes:
        found: the search.
        rounds: of each setting.
        file: that keeps the winner.
        model: images a second of the model's step; None where not asked for.
    """

    found: Halving[LoaderSettings]
    rounds: Mapping[LoaderSettings, Sequence[Round]]
    file: Path
    model: float | None


class Bench:
    """One process that measures the loader with any settings.

    Args:
        spec: what it is to do.
        by: the clock's images a second, or those that its CPU time allows: other programs disturb them less, but they
            do not show a loader that waits.

    Attributes:
        rounds: of each setting so far.
    """

    def __init__(self, spec: FeedSpec, by: By = "clock") -> None:
        self._spec, self._by = spec, by
        self.rounds: dict[LoaderSettings, list[Round]] = {}
        self._candidate = Candidate(spec)

    def measure(self, settings: LoaderSettings, seconds: float) -> float:
        """One round; its score in images a second.

        Raises:
            CandidateFailed: the loader failed.
        """
        self._candidate.switch(spec_of(self._spec, settings))
        measured = self._candidate.round(seconds, warm_up=settings.prefetch + 1)  # nothing was made beforehand
        self.rounds.setdefault(settings, []).append(measured)
        return score(measured, settings.threads, self._by)

    def ready(self) -> None:
        """Wait for the process."""
        self._candidate.ready()

    def close(self) -> None:
        """End the process."""
        self._candidate.close()


def score(measured: Round, threads: int, by: By) -> float:
    """Images a second: by the clock, or as many as the cores that the threads can use make in their CPU time."""
    if by == "clock":
        return measured.images_per_s
    return min(threads, measured.cores) / max(measured.cpu_us_per_image, 1e-3) * 1e6


def main(recipe: Recipe, data: Path, console: Console, **options: Any) -> None:
    """The command: search, saying what is being done, then print what was found and keep it."""
    chosen = TuneOptions(recipe=recipe, data=data, **options)
    result = run(chosen, say=lambda line: console.print(line, style="dim", markup=False, highlight=False))
    for line in lines(result, chosen):
        console.print(line, markup=False, highlight=False)


def run(options: TuneOptions, say: Say = lambda _: None) -> Tuned:
    """Search, and keep the winner.

    Raises:
        RsbdaliError: no such data, device, model or recipe value; the loader failed (its last line is the message).
    """
    if options.minutes <= 0 or options.round_s <= 0:
        raise RsbdaliError(f"--minutes {options.minutes:g}: must be positive")
    with tempfile.TemporaryDirectory(prefix="rsbdali-tune-") as scratch:
        spec = make_spec(options, Path(scratch), say)
        with closing(Bench(spec)) as bench:
            bench.ready()
            found = run_search(bench, spec, options, say)
    model = _model(options, say) if options.against else None
    return Tuned(found, bench.rounds, _keep(found, options, spec), model)


def make_spec(options: TuneOptions, scratch: Path, say: Say) -> FeedSpec:
    """The task, its images repeated in `scratch` where they are few."""
    of_bench = BenchOptions(
        data=options.data,
        recipe=options.recipe,
        batch_size=options.batch_size,
        device=options.device,
        against=options.against,
    )
    check_options(of_bench)
    return feed_spec(of_bench, scratch, say)[0]


def run_search(bench: Bench, spec: FeedSpec, options: TuneOptions, say: Say) -> Halving[LoaderSettings]:
    """Successive halving over the grid of this machine."""
    searched = searched_on(spec, options)
    for knob in knobs(**searched):
        say(str(knob))
    if not options.allow_pixels:
        say("decode (where images are decoded; changes pixels): as it is, --allow-pixels searches it")
    candidates = grid(rows=spec.batch_size, **searched)
    say(f"{counted(len(candidates), 'setting')}, --minutes {options.minutes:g}")
    measure = partial(bench.measure, seconds=options.round_s)
    return search(candidates, measure, seconds=60 * options.minutes, clock=time.monotonic, say=say)


def searched_on(spec: FeedSpec, options: TuneOptions) -> dict[str, Any]:
    """What of the machine and the options says what is searched: arguments of `knobs`."""
    return {
        "cores": default_threads(),
        "device": spec.device,
        "allow_pixels": options.allow_pixels,
        "gpu_decodes": missing_compiler() is None and not cpu_only(options.recipe),
        "jpeg_engine": has_jpeg_engine(torch.device(spec.device)),
    }


def _model(options: TuneOptions, say: Say) -> float:
    say(f"training steps of {options.against} on synthetic data")
    recipe = options.recipe.with_overrides({"model": options.against})
    seconds = min(MODEL_S, 60 * options.minutes)
    return measure_model(recipe, batch_size=options.batch_size, device=options.device, seconds=seconds).median


def _keep(found: Halving[LoaderSettings], options: TuneOptions, spec: FeedSpec) -> Path:
    measured = {
        "machine": machine_record(),
        "batch_size": spec.batch_size,
        "images_per_s": statistics.median(found.final[found.winner]),
        "by_default": found.margin if found.winner == found.best else 1.0,
        "noise": found.noise,
        "tried": len(found.scores),
        "untried": len(found.untried),
    }
    return tuned.keep(found.winner, tuned.machine_key(options.recipe, resolve_device(options.device)), measured)


def lines(result: Tuned, options: TuneOptions) -> list[str]:
    """What a user reads: finalists, the winner and its margin, what is untried, a warning, the verdict, the file."""
    found = result.found
    rates = {each: statistics.median(rounds) for each, rounds in found.final.items()}
    finalists = [f"  {rates[each]:,.0f} images/s: {each}" for each in sorted(rates, key=lambda each: -rates[each])]
    shown = [f"last rung, {len(found.ratios)} interleaved rounds:", *finalists, _sentence(found), _untried(found)]
    shown.append(busy_warning({"the loader": Presence.of(result.rounds[found.winner])}))
    if result.model is not None:
        shown.append(_against(result, options))
    use = "rsbdali train --tuned and create_loader(tuned=True) use it"
    return [line for line in (*shown, f"kept in {result.file}; {use}") if line]


def _sentence(found: Halving[LoaderSettings]) -> str:
    least, most = min(found.ratios), max(found.ratios)
    figures = f"{found.margin:.2f} × the defaults ({least:.2f} to {most:.2f}), noise of its rounds {found.noise:.0%}"
    if found.best == next(iter(found.final)):
        return f"the defaults are the fastest: {found.winner} (noise of their rounds {found.noise:.0%})"
    if found.winner != found.best:
        best = f"the next best, {found.best}: {figures}"
        return f"no difference from the defaults is shown, so they stay: {found.winner}; {best}"
    return f"fastest: {found.winner}: {figures}"


def _untried(found: Halving[LoaderSettings]) -> str:
    if not found.untried:
        return ""
    settings = counted(len(found.scores) + len(found.untried), "setting")
    minutes = math.ceil(found.whole_s / 6) / 10
    return f"not tried for lack of time: {len(found.untried)} of {settings}; --minutes {minutes:g} tries all"


def _against(result: Tuned, options: TuneOptions) -> str:
    winner = result.found.winner
    cpu_us = statistics.median(measured.cpu_us_per_image for measured in result.rounds[winner])
    loader = Loader(name="rsbdali", images_per_s=statistics.median(result.found.final[winner]), cpu_us_per_image=cpu_us)
    assert options.against is not None
    assert result.model is not None
    model = Model(name=options.against, images_per_s=result.model)
    device = resolve_device(options.device).type
    return verdict(loader, model=model, threads=winner.threads, cores=default_threads(), device=device)
