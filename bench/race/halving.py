"""Successive halving (Jamieson and Talwalkar 2016): measure all a little, drop the slower half, go on with the rest.

Rounds are interleaved, so that a machine that slows down slows all of them; each rung has an equal share of the time.
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
    """

    scores: Mapping[Settings, Sequence[float]]
    final: Mapping[Settings, Sequence[float]]
    winner: Settings
    best: Settings
    ratios: Sequence[float]

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
        candidates: the default first; it stays to the end.
        measure: one round; its score, more is better.
        seconds: for all rounds together, about: every candidate has one round at least, the finalists have five.
        clock: seconds.
        say: told what each rung left over.
    """
    begin, scores, alive = clock(), {each: list[float]() for each in candidates}, list(candidates)
    rungs = max(0, math.ceil(math.log2(len(candidates) / FINALISTS)))
    measured = 0
    for rung in range(rungs):
        share = (begin + seconds - clock()) / (rungs + 1 - rung)
        rounds = 1 if not measured else _rounds(share, len(alive) * (clock() - begin) / measured)
        for _ in range(rounds):
            for each in alive:
                scores[each].append(measure(each))
        measured += rounds * len(alive)
        alive = _better_half(alive, scores)
        say(f"rung {rung + 1}/{rungs + 1}: {measured} rounds so far, {len(alive)} of {len(candidates)} go on")
    rounds = _rounds(begin + seconds - clock(), len(alive) * (clock() - begin) / max(1, measured))
    final = {each: list[float]() for each in alive}
    for _ in range(max(LEAST_FINAL, rounds)):
        for each in alive:
            final[each].append(measure(each))
            scores[each].append(final[each][-1])
    return _judged(candidates[0], scores, final)


def _rounds(seconds: float, each: float) -> int:
    """How many rounds of all that are alive fit into some time."""
    return max(1, min(MOST_ROUNDS, int(seconds / each))) if each > 0 else 1


def _better_half(alive: Sequence[Settings], scores: Mapping[Settings, Sequence[float]]) -> list[Settings]:
    """By the median of all their rounds; the default, which is the first, whatever it has."""
    ranked = sorted(alive[1:], key=lambda each: -statistics.median(scores[each]))
    return [alive[0], *ranked[: max(FINALISTS, math.ceil(len(alive) / 2)) - 1]]


def _judged(
    default: Settings, scores: Mapping[Settings, Sequence[float]], final: Mapping[Settings, Sequence[float]]
) -> Halving[Settings]:
    best = max(final, key=lambda each: statistics.median(final[each]))
    ratios = [mine / theirs for mine, theirs in zip(final[best], final[default], strict=True)]
    # five rounds of five won by chance: 3 %
    return Halving(scores, final, best if is_shown(ratios) else default, best, ratios)


def is_shown(ratios: Sequence[float]) -> bool:
    """Whether rounds side by side show one to be better: nine of ten are won, and all of fewer."""
    won = sum(ratio > 1 for ratio in ratios)
    return len(ratios) >= LEAST_FINAL and won >= math.ceil(0.9 * len(ratios))
