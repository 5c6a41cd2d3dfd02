"""What `rsbdali.watch` costs: CPU microseconds a batch, on top of a loop over the same batches without it.

    python -m rsbdali.bench.watch_overhead [--batches N] [--rounds R] [--json FILE]

Batches are pairs of small tensors that are ready, so that nothing but the loop itself is measured. Rounds with and
without are interleaved; CPU time is that of the one thread that loops, which other programs disturb less than the
clock's. The looks at /proc, one a second, are measured by themselves, for a loader of 16 worker processes.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console

from rsbdali.environment import machine_record, write_record
from rsbdali.tools.watch.machine import Machine
from rsbdali.tools.watch.record import LOOK_S
from rsbdali.tools.watch.watched import watch

BATCHES, ROUNDS, LOOKS, WORKERS = 20_000, 9, 50, 16


@dataclass(frozen=True)
class Overhead:
    """Medians over rounds, with the least and the most.

    Attributes:
        plain_us: CPU microseconds a batch of a loop that does nothing.
        watched_us: of the same loop over a watched loader.
        added_us: by `watch`: median, least and most of the rounds' differences.
        look_us: CPU microseconds of a look at /proc.
        look_share: of one core, at a look each `LOOK_S` seconds.
    """

    plain_us: float
    watched_us: float
    added_us: tuple[float, float, float]
    look_us: float
    look_share: float


def measure(batches: int = BATCHES, rounds: int = ROUNDS) -> Overhead:
    """Measure both loops in interleaved rounds, and the looks."""
    loader = [(torch.zeros(2, 3), torch.zeros(2))] * batches
    plain, watched = list[float](), list[float]()
    for _ in range(rounds):
        plain.append(_cpu_us(lambda: _loop(loader)) / batches)
        watched.append(_cpu_us(lambda: _loop(watch(loader, say=lambda _: None))) / batches)
    added = [with_it - without for with_it, without in zip(watched, plain, strict=True)]
    machine = Machine()
    look_us = median(_cpu_us(lambda: machine.counters([os.getpid()] * WORKERS)) for _ in range(LOOKS))
    spread = median(added), min(added), max(added)
    return Overhead(median(plain), median(watched), spread, look_us, look_us / 1e6 / LOOK_S)


def _loop(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def _cpu_us(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return 1e6 * (time.thread_time() - start)


def main() -> None:
    """Measure and print; `--json` keeps the record."""
    parser = argparse.ArgumentParser(prog="python -m rsbdali.bench.watch_overhead", description=__doc__)
    parser.add_argument("--batches", type=int, default=BATCHES, help="of a round")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="interleaved, with and without")
    parser.add_argument("--json", type=Path, help="write the record here")
    options = parser.parse_args()
    found = measure(options.batches, options.rounds)
    middle, least, most = found.added_us
    Console().print(
        f"watch adds {middle:.2f} CPU-µs a batch ({least:.2f} to {most:.2f}): {found.watched_us:.2f} with it, "
        f"{found.plain_us:.2f} without\na look at {WORKERS} worker processes takes {found.look_us:.0f} CPU-µs, "
        f"{found.look_share:.2%} of a core at one each {LOOK_S:g} s",
        highlight=False,
    )
    if options.json is not None:
        write_record(options.json, {"machine": machine_record(), "batches": options.batches, **asdict(found)})


if __name__ == "__main__":
    main()
