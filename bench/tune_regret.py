"""How much slower the settings that `rsbdali tune` finds are than the best of the whole grid.

    python -m rsbdali.bench.tune_regret --data D [--recipe a3] [--minutes 2] [--runs 5] [--rounds 5] [--by cpu|clock]

Three parts, all in one process of the loader: `--rounds` interleaved rounds of every setting of the grid (exhaustive);
`--runs` searches of `--minutes` each, as the command makes them; then the grid's best and what the searches found, side
by side in interleaved rounds that neither part has seen, since the best of many noisy figures looks better than it is.
Regret is the best's score by the found one's, less 1: the median of the rounds. By `cpu` the score is the images a
second that the CPU time allows, which other programs disturb less; by `clock` it is images a second.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from rsbdali.bench.race.knobs import grid
from rsbdali.bench.race.successive_halving import search
from rsbdali.bench.report.presence import Presence, busy_warning
from rsbdali.bench.tune import ROUND_S, Bench, By, Say, TuneOptions, make_spec, searched_on
from rsbdali.environment import machine_record, write_record
from rsbdali.errors import counted
from rsbdali.loader.tuned import LoaderSettings
from rsbdali.recipe import Recipe

GOAL = 0.05


@dataclass(frozen=True, kw_only=True)
class Regret:
    """What came out.

    Attributes:
        best: of the whole grid.
        found: by each search.
        regrets: of each search.
        default: what keeping the default costs by the same measure.
        settings: in the grid.
        search_s: seconds of each search.
        warning: what makes the figures doubtful; may be empty.
    """

    best: LoaderSettings
    found: tuple[LoaderSettings, ...]
    regrets: tuple[float, ...]
    default: float
    settings: int
    search_s: tuple[float, ...]
    warning: str

    @property
    def median(self) -> float:
        """Of the searches."""
        return statistics.median(self.regrets)


def measure(options: TuneOptions, *, runs: int, rounds: int, by: By, say: Say = lambda _: None) -> Regret:
    """Measure the grid, search, and compare.

    Args:
        options: of the searches.
        runs: how many of them.
        rounds: of each setting, of the grid and of the comparison.
        by: see `tune.Bench`.
        say: called with a line on what is being done.
    """
    with tempfile.TemporaryDirectory(prefix="rsbdali-regret-") as scratch:
        spec = make_spec(options, Path(scratch), say)
        candidates = grid(rows=spec.batch_size, **searched_on(spec, options))
        with closing(Bench(spec, by)) as bench:
            bench.ready()
            scores = _rounds(bench, candidates, rounds, options.round_s, say)
            best = max(candidates, key=lambda each: statistics.median(scores[each]))
            found, seconds = _searches(bench, candidates, runs, options, say)
            compared = list(dict.fromkeys([best, candidates[0], *found]))
            say(f"comparing {len(compared)} settings")
            side_by_side = _rounds(bench, compared, rounds, options.round_s, say)
            presence = Presence.of([each for measured in bench.rounds.values() for each in measured])
    return Regret(
        best=best,
        found=tuple(found),
        regrets=tuple(_regret(side_by_side[best], side_by_side[each]) for each in found),
        default=_regret(side_by_side[best], side_by_side[candidates[0]]),
        settings=len(candidates),
        search_s=tuple(seconds),
        warning=busy_warning({"the loader": presence}),
    )


def _rounds(
    bench: Bench, candidates: Sequence[LoaderSettings], rounds: int, seconds: float, say: Say
) -> dict[LoaderSettings, list[float]]:
    scores: dict[LoaderSettings, list[float]] = {each: [] for each in candidates}
    for number in range(rounds):
        for each in candidates:
            scores[each].append(bench.measure(each, seconds))
        say(f"round {number + 1}/{rounds} of {len(candidates)} settings")
    return scores


def _searches(
    bench: Bench, candidates: Sequence[LoaderSettings], runs: int, options: TuneOptions, say: Say
) -> tuple[list[LoaderSettings], list[float]]:
    found, seconds = [], []
    for number in range(runs):
        begin = time.monotonic()
        once = partial(bench.measure, seconds=options.round_s)
        found.append(search(candidates, once, seconds=60 * options.minutes, clock=time.monotonic).winner)
        seconds.append(time.monotonic() - begin)
        say(f"search {number + 1}/{runs}: {found[-1]} in {seconds[-1]:.0f} s")
    return found, seconds


def _regret(best: Sequence[float], other: Sequence[float]) -> float:
    return statistics.median(b / o for b, o in zip(best, other, strict=True)) - 1


def lines(regret: Regret, by: By) -> list[str]:
    """For people."""
    each = [
        f"search {number}: {settings}, regret {value:+.1%}"
        for number, (settings, value) in enumerate(zip(regret.found, regret.regrets, strict=True), 1)
    ]
    goal = f"{'at most' if regret.median <= GOAL else 'above'} {GOAL:.0%}"
    whose = "CPU time" if by == "cpu" else "the clock"
    return [
        f"best of {regret.settings} settings: {regret.best}; the default {regret.default:+.1%}",
        *each,
        *([regret.warning] if regret.warning else []),
        f"regret by {whose}: {regret.median:+.1%}, median of {counted(len(each), 'search', 'searches')}, {goal}",
    ]


def record(regret: Regret, options: TuneOptions, by: By) -> dict[str, Any]:
    """The result as plain JSON values."""
    asked = {"recipe": options.recipe.name, "batch_size": options.batch_size, "minutes": options.minutes, "by": by}
    return {"machine": machine_record(), **asked, "median": regret.median, **json.loads(json.dumps(asdict(regret)))}


def main() -> None:
    """Measure and print; `--json` keeps the record."""
    parser = argparse.ArgumentParser(prog="python -m rsbdali.bench.tune_regret", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder of images by class, or one with train/")
    parser.add_argument("--recipe", default="a3")
    parser.add_argument("--minutes", type=float, default=2.0, help="of a search")
    parser.add_argument("--runs", type=int, default=5, help="searches")
    parser.add_argument("--rounds", type=int, default=5, help="of each setting of the grid, and of the comparison")
    parser.add_argument("--round-s", type=float, default=ROUND_S, help="seconds of a round")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--allow-pixels", action="store_true", help="the decode mode too")
    parser.add_argument("--by", choices=("cpu", "clock"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the record here")
    chosen = vars(parser.parse_args())
    runs, rounds, by, json_path = (chosen.pop(name) for name in ("runs", "rounds", "by", "json"))
    options = TuneOptions(**{**chosen, "recipe": Recipe.load(chosen["recipe"])})
    console = Console()

    def say(line: str) -> None:
        console.print(line, style="dim", markup=False, highlight=False)

    regret = measure(options, runs=runs, rounds=rounds, by=by, say=say)
    for line in lines(regret, by):
        console.print(line, markup=False, highlight=False)
    if json_path is not None:
        write_record(json_path, record(regret, options, by))


if __name__ == "__main__":
    main()
