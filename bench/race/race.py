"""Candidates side by side: started one after another, then measured in interleaved rounds."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from rsbdali.bench.measure.meter import Round
from rsbdali.bench.race.candidate import Candidate, CandidateFailed
from rsbdali.bench.race.feeds import FeedSpec

Say = Callable[[str], None]
Keep = Callable[[Mapping[str, Sequence[Round]]], None]  # called with all rounds so far, by name


def forget(_: Mapping[str, Sequence[Round]]) -> None:
    """Keeps nothing of a race that is not finished."""


def start(specs: Sequence[FeedSpec], skipped: dict[str, str], stack: ExitStack, say: Say) -> list[Candidate]:
    """Start candidates, all at once; a peer that fails is noted as skipped, ours is an error."""
    launched, started = [], []
    for spec in specs:
        say(f"starting {spec.kind}")
        launched.append(Candidate(spec))
        stack.callback(launched[-1].close)
    for candidate in launched:
        try:
            candidate.ready()
        except CandidateFailed as failure:
            if candidate.name.startswith("rsbdali"):
                raise
            skipped[candidate.name] = failure.reason
            continue
        started.append(candidate)
    return started


def race(
    candidates: list[Candidate],
    rounds: int,
    seconds: float,
    skipped: dict[str, str],
    say: Say,
    keep: Keep = forget,
) -> dict[str, list[Round]]:
    """Interleaved rounds by name. A peer that fails in mid-race is taken out; ours failing is an error.

    Args:
        candidates: started.
        rounds: of each.
        seconds: length of a round.
        skipped: gets the reason of each that is taken out.
        say: called with a line on what was measured.
        keep: called with the rounds so far each time all have had one more, so that an interrupted race leaves them.
    """
    found: dict[str, list[Round]] = {c.name: [] for c in candidates}
    for number in range(rounds):
        for candidate in candidates:
            if candidate.name not in found:
                continue
            try:
                result = candidate.round(seconds)
            except CandidateFailed as failure:
                if candidate.name.startswith("rsbdali"):
                    raise
                skipped[candidate.name] = failure.reason
                del found[candidate.name]
                continue
            found[candidate.name].append(result)
            say(f"round {number + 1}/{rounds}: {candidate.name} {result.images_per_s:,.0f} images/s")
        keep(found)
    return found
