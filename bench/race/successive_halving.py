"""Successive halving (Jamieson and Talwalkar 2016): measure all a little, drop the slower half, go on with the rest.

Rounds are interleaved, so that a machine that slows down slows all of them; each rung has an equal share of the time.
Where the time does not reach for all candidates, as the rounds so far show, the last ones are not tried.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

FINALISTS = 3  # that the last rung compares, the default among them
LEAST_FINAL = 5  # rounds of the last rung, whatever the time: below them no difference could be shown
MOST_ROUNDS = 25  # of a rung
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Halving(Generic[Settings]):
    """What a search found.

    Attributes:
        scores: of each candidate, all rounds in their order; more is better.
        final: of the finalists, the rounds of the last rung alone, which were measured side by side.
        winner: the best of the finalists, or the default where no difference from it is shown.
        best: the one with the best median in the last rung, shown or not.
        ratios: of `best` by the default, round by round of the last rung.
        untried: candidates that the time did not reach for.
        whole_s: seconds that trying all candidates takes, by what a round took on average.
    """

    scores: Mapping[Settings, Sequence[float]]
    final: Mapping[Settings, Sequence[float]]
    winner: Settings
    best: Settings
    ratios: Sequence[float]
    untried: Sequence[Settings] = ()
    whole_s: float = 0.0

    @property
    def margin(self) -> float:
        """`best` by the default: median of the rounds' ratios."""
        return statistics.median(self.ratios)

    @property
    def noise(self) -> float:
        """Spread of the winner's rounds in the last rung, as a share of their median."""
        rounds = self.final[self.winner]
        return (max(rounds) - min(rounds)) / statistics.median(rounds)


def search(
    candidates: Sequence[Settings],
    measure: Callable[[Settings], float],
    *,
    seconds: float,
    clock: Callable[[], float],
    say: Callable[[str], None] = lambda _: None,
) -> Halving[Settings]:
    """Find the best of some candidates.

    Args:
        candidates: the default first; it stays to the end. Those at the end are left out where time is short.
        measure: one round; its score, more is better.
        seconds: for all rounds together, about: three candidates are tried in any case, and the finalists have five
            rounds.
        clock: seconds.
        say: called with a line on what each rung left over.
    """
    budget = _Budget(seconds, clock)
    scores = _first_rung(candidates, measure, budget)
    alive, rungs = list(scores), _rungs(len(scores))
    for rung in range(rungs):
        if rung:
            for each in budget.rounds(len(alive), rungs - rung) * alive:
                scores[each].append(budget.timed(measure, each))
        alive = _better_half(alive, scores)
        say(f"rung {rung + 1}/{rungs + 1}: {budget.measured} rounds so far, {len(alive)} of {len(scores)} go on")
    final = {each: list[float]() for each in alive}
    for each in budget.rounds(len(alive), 0) * alive:
        final[each].append(budget.timed(measure, each))
        scores[each].append(final[each][-1])
    untried = [each for each in candidates if each not in scores]
    return _judged(candidates[0], scores, final, untried, budget.average_s * _least_rounds(len(candidates)))


class _Budget:
    """The time of a search, in rounds: how many fit, by what one took on average so far."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds, self._clock, self.measured = seconds, clock, 0
        self._begin = self._warm = clock()

    def timed(self, measure: Callable[[Settings], float], candidate: Settings) -> float:
        score = measure(candidate)
        self.measured += 1
        if self.measured == 1:
            self._warm = self._clock()
        return score

    @property
    def average_s(self) -> float:
        """Of all rounds but the first, in which files come from the disk and code is compiled."""
        return (self._clock() - self._warm) / max(1, self.measured - 1)

    @property
    def left_s(self) -> float:
        return self._seconds - (self._clock() - self._begin)

    def fits(self, tried: int) -> bool:
        """Whether there is time for the rest of a search among so many."""
        return self.average_s * (_least_rounds(tried) - self.measured) <= self.left_s

    def rounds(self, alive: int, rungs: int) -> int:
        """How many rounds a rung of so many has, its equal share, where the last one and some rungs come behind it."""
        if not self.measured:
            return LEAST_FINAL
        after = _least_rounds(_half(alive)) if rungs else 0
        fitting = self.left_s / max(self.average_s, 1e-9)  # a fake clock may not move
        share = min(fitting / (rungs + 1), fitting - after) / alive
        return max(1 if rungs else LEAST_FINAL, min(MOST_ROUNDS, int(share)))


def _first_rung(
    candidates: Sequence[Settings], measure: Callable[[Settings], float], budget: _Budget
) -> dict[Settings, list[float]]:
    """A round of each, as long as there is time for the rungs that come behind it."""
    if len(candidates) <= FINALISTS:
        return {each: [] for each in candidates}
    scores: dict[Settings, list[float]] = {}
    for each in candidates:
        if len(scores) >= FINALISTS and not budget.fits(len(scores) + 1):
            break
        scores[each] = [budget.timed(measure, each)]
    return scores


def _half(alive: int) -> int:
    return max(FINALISTS, math.ceil(alive / 2))


def _rungs(count: int) -> int:
    """Rungs before the last one."""
    return max(0, math.ceil(math.log2(count / FINALISTS)))


def _least_rounds(count: int) -> int:
    """Rounds of a search among so many that gives each rung one."""
    before = 0
    for _ in range(_rungs(count)):
        before, count = before + count, _half(count)
    return before + LEAST_FINAL * count


def _better_half(alive: Sequence[Settings], scores: Mapping[Settings, Sequence[float]]) -> list[Settings]:
    """By the median of all their rounds; the default, which is the first, whatever it has."""
    ranked = sorted(alive[1:], key=lambda each: -statistics.median(scores[each]))
    return [alive[0], *ranked[: _half(len(alive)) - 1]]


def _judged(
    default: Settings,
    scores: Mapping[Settings, Sequence[float]],
    final: Mapping[Settings, Sequence[float]],
    untried: Sequence[Settings],
    whole_s: float,
) -> Halving[Settings]:
    best = max(final, key=lambda each: statistics.median(final[each]))
    ratios = [mine / theirs for mine, theirs in zip(final[best], final[default], strict=True)]
    return Halving(scores, final, best if is_shown(ratios) else default, best, ratios, untried, whole_s)


def is_shown(ratios: Sequence[float]) -> bool:
    """Whether rounds side by side show one to be better: nine of ten are won, and all of fewer.

    By chance one of two challengers wins all of five in 6 % of searches.
    """
    won = sum(ratio > 1 for ratio in ratios)
    return len(ratios) >= LEAST_FINAL and won >= math.ceil(0.9 * len(ratios))
