"""What a candidate had of the machine while it was measured, and a warning where other programs had much of it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rsbdali.bench.measure.meter import Round

TAKEN = 0.1  # other programs' share of the cores from which on figures are doubtful


@dataclass(frozen=True, kw_only=True)
class Presence:
    """Shares of wall clock × cores, over all rounds together.

    Attributes:
        cpu_share: CPU time of the candidate. Little of it without `others_share` means that it waited by itself.
        others_share: CPU time of all other programs, the kernel's own work included.
        load: the machine's load average over a minute, median over rounds.
    """

    cpu_share: float
    others_share: float
    load: float

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> "Presence":
        """From one or more rounds."""
        offered = sum(r.seconds * r.cores for r in rounds)
        return cls(
            cpu_share=sum(r.cpu_s for r in rounds) / offered,
            # the kernel counts in ticks of 10 ms, which a short round can go past
            others_share=min(1.0, max(0.0, sum(r.busy_s - r.cpu_s for r in rounds) / offered)),
            load=statistics.median(r.load for r in rounds),
        )


def busy_warning(presence_of: Mapping[str, Presence]) -> str:
    """A sentence on the candidates, by name, that did not have the machine to themselves; empty if all had."""
    disturbed = {name: p for name, p in presence_of.items() if p.others_share >= TAKEN}
    if not disturbed:
        return ""
    low, high = (f"{pick(p.others_share for p in disturbed.values()):.0%}" for pick in (min, max))
    share = low if low == high else f"{low} to {high}"
    when = "throughout" if len(disturbed) == len(presence_of) else f"beside {', '.join(disturbed)}"
    load = max(p.load for p in disturbed.values())
    return (
        f"the machine was busy with something else: other programs had {share} of the cores' time {when} "
        f"(load {load:.1f}). Measure again on an idle one; CPU-µs are disturbed less than images/s."
    )


def processor(machine: dict[str, Any]) -> str:
    """The processor of a record, and how many of its cores were there to use."""
    return f"{machine['cpu']}, {machine['cores_usable']} of {machine['cores']} cores"
