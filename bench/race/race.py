"""Contestants side by side: started one after another, then measured in interleaved rounds."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from rsbdali.bench.measure.meter import Round
from rsbdali.bench.race.contestant import Contestant, ContestantFailed
from rsbdali.bench.race.feeds import FeedSpec

Say = Callable[[str], None]


def start(specs: Sequence[FeedSpec], skipped: dict[str, str], stack: ExitStack, say: Say) -> list[Contestant]:
    """Start contestants; a peer that fails is noted as skipped, ours is an error."""
    started = []
    for spec in specs:
        say(f"starting {spec.kind}")
        try:
            contestant = Contestant(spec)
        except ContestantFailed as failure:
            if spec.kind.startswith("rsbdali"):
                raise
            skipped[spec.kind] = failure.reason
            continue
        stack.callback(contestant.close)
        started.append(contestant)
    return started


def race(
    contestants: list[Contestant], rounds: int, seconds: float, skipped: dict[str, str], say: Say
) -> dict[str, list[Round]]:
    """Interleaved rounds by name. A peer that fails in mid-race is taken out; ours failing is an error."""
    found: dict[str, list[Round]] = {c.name: [] for c in contestants}
    for number in range(rounds):
        for contestant in contestants:
            if contestant.name not in found:
                continue
            try:
                result = contestant.round(seconds)
            except ContestantFailed as failure:
                if contestant.name.startswith("rsbdali"):
                    raise
                skipped[contestant.name] = failure.reason
                del found[contestant.name]
                continue
            found[contestant.name].append(result)
            say(f"round {number + 1}/{rounds}: {contestant.name} {result.images_per_s:,.0f} images/s")
    return found
