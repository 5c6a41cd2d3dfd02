"""bench-step: images a second of our training step against timm's, on synthetic data, and where a step's time goes.

All candidates live in this process, one model each; rounds are interleaved (A B C A B C …). No data path is in it:
the batch is on the device.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rsbdali.bench.measure.meter import Round
from rsbdali.bench.measure.phases import measure_parts
from rsbdali.bench.measure.timing import matmul_peak
from rsbdali.bench.race.flops import flops_per_image, utilization
from rsbdali.bench.race.step_race import OURS, Entry, Race, Say, entries
from rsbdali.bench.race.synthetic import step_recipe
from rsbdali.bench.report.figures import Spread, overlap, ratio, ratios, round_record
from rsbdali.bench.report.presence import Presence, busy_warning
from rsbdali.bench.report.terminal_step import print_step
from rsbdali.bench.report.verdict import StepPair, step_verdict
from rsbdali.distributed.devices import resolve_device
from rsbdali.distributed.world import World
from rsbdali.environment import machine_record, write_record
from rsbdali.errors import RecipeError
from rsbdali.recipe import Recipe
from rsbdali.training.acceleration import OFF, PLAIN, Acceleration
from rsbdali.training.precision import amp_dtype, kernel_policy, name_of

PEERS = ("timm",)
CPU_BATCH = 8  # the images/s of 16, in half the time
PARTED_STEPS = {"cuda": 20, "cpu": 3}


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What to measure.

    Attributes:
        recipe: model, sizes, optimizer, loss, mixing, amp_dtype.
        batch_size: rows of a step; None: the recipe's mix group on a GPU, 8 on a CPU.
        device: `cpu`, `cuda`, or `auto`.
        seconds: length of one measured window, which holds two steps at least.
        rounds: how often each candidate is measured.
        peers: of `PEERS`.
        acceleration: torch.compile and CUDA graphs: measure the steps with them too.
        json: file for the record, None for none.
    """

    recipe: Recipe
    batch_size: int | None = None
    device: str = "auto"
    seconds: float = 2.0
    rounds: int = 5
    peers: tuple[str, ...] = ()
    acceleration: Acceleration = PLAIN
    json: Path | None = None


def main(
    recipe: Recipe,
    console: Console,
    *,
    peers: str | None,
    torch_compile: str | None,
    cuda_graph: bool,
    json_path: Path | None,
    **options: Any,
) -> None:
    """The command: measure, saying what is being done, then print and write the record."""
    names = tuple(name.strip() for name in (peers or "").split(",") if name.strip())
    acceleration = Acceleration(torch_compile=torch_compile or OFF, cuda_graph=cuda_graph)
    chosen = StepOptions(recipe=recipe, peers=names, acceleration=acceleration, json=json_path, **options)
    print_step(console, run(chosen, lambda line: console.print(line, style="dim", markup=False)))
    if json_path:
        console.print(f"wrote {json_path}", markup=False)


def run(options: StepOptions, say: Say = lambda _: None) -> dict[str, Any]:
    """Measure, and write the record if a file was asked for.

    Returns:
        machine, config, results (ours first), skipped, ratio_to (our images/s by another's, round by round, median),
        cpu_ratio_to (their CPU time an image by ours, likewise), ceiling (operations of an image, and of the device's
        matmul in a second), warning (what makes the figures doubtful; may be empty), verdict (a sentence).

    Raises:
        RsbdaliError: no such peer, model or device, an odd batch, no memory for our own step.
    """
    for name in options.peers:
        if name not in PEERS:
            raise RecipeError(f"--peers {name}: unknown; known are {', '.join(PEERS)}")
    device = resolve_device(options.device)
    group = options.recipe.global_batch_size // options.recipe.mix_groups
    rows = options.batch_size or (group if device.type == "cuda" else min(group, CPU_BATCH))
    if rows % 2:
        raise RecipeError(f"--batch-size {rows}: must be even: images are mixed in pairs")
    recipe = step_recipe(options.recipe, rows)
    options.acceleration.check(recipe, device, World())
    with kernel_policy(device, deterministic=False):
        record = _measure(options, recipe, device, say)
    if options.json:
        write_record(options.json, record)
    return record


def _measure(options: StepOptions, recipe: Recipe, device: torch.device, say: Say) -> dict[str, Any]:
    flops, peak = flops_per_image(recipe), matmul_peak(device, amp_dtype(recipe.amp_dtype, device))
    race, field = Race(recipe, device, say), entries(options.peers, options.acceleration)
    for entry in field:
        race.start(entry)

    def record(rounds: dict[str, tuple[Round, ...]], *, finished: bool) -> dict[str, Any]:
        results = []
        for entry in field:
            if entry.name in rounds:
                parts = None
                if finished and entry.is_plain:  # hooks between the parts would cut a compiled step up
                    parts = measure_parts(race.steps[entry.name], device, PARTED_STEPS[device.type])
                results.append(_result(entry, rounds[entry.name], parts, flops, peak))
        ratio_to, cpu_ratio_to = ratios({n: (rounds[OURS], theirs) for n, theirs in rounds.items() if n != OURS})
        return {
            "kind": "step",
            "finished": finished,
            "machine": machine_record(),
            "config": _config(options, recipe, device),
            "results": results,
            "skipped": race.skipped,
            "ratio_to": ratio_to,
            "cpu_ratio_to": cpu_ratio_to,
            "ceiling": {"flops_per_image": flops, "matmul_flops_per_s": peak},
            "warning": busy_warning({name: Presence.of(found) for name, found in rounds.items()}),
            "verdict": step_verdict(_pairs(field, rounds), _rate(rounds[OURS])),
        }

    def keep(rounds: Mapping[str, Sequence[Round]]) -> None:
        if options.json:  # what is left of a bench that is interrupted
            write_record(options.json, record({name: tuple(done) for name, done in rounds.items()}, finished=False))

    return record(race.run(field, options.rounds, options.seconds, keep), finished=True)


def _rate(rounds: Sequence[Round]) -> float:
    return statistics.median(r.images_per_s for r in rounds)


def _pairs(field: Sequence[Entry], rounds: dict[str, tuple[Round, ...]]) -> list[StepPair]:
    """Each peer's step with ours of the same kind."""
    found = []
    for peer in field:
        ours = replace(peer, team=OURS)
        if peer.team != OURS and peer.name in rounds and ours.name in rounds:
            mine, theirs = rounds[ours.name], rounds[peer.name]
            found.append(
                StepPair(
                    ours=ours.name,
                    images_per_s=_rate(mine),
                    peer=peer.name,
                    peer_images_per_s=_rate(theirs),
                    ratio=ratio(mine, theirs),
                    overlaps=overlap(mine, theirs),
                )
            )
    return found


def _result(
    entry: Entry, rounds: tuple[Round, ...], parts: dict[str, float] | None, flops: int, peak: float
) -> dict[str, Any]:
    rate = Spread.of([r.images_per_s for r in rounds])
    return {
        "name": entry.name,
        "note": entry.note,
        "images_per_s": asdict(rate),
        "step_ms": statistics.median(1e3 * r.seconds / len(r.wait_s) for r in rounds),
        "cpu_us_per_image": statistics.median(r.cpu_us_per_image for r in rounds),
        "utilization": utilization(flops, rate.median, peak),
        "parts_ms": parts,
        **asdict(Presence.of(rounds)),
        "rounds": [round_record(r) for r in rounds],
    }


def _config(options: StepOptions, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "model": recipe.model,
        "train_size": list(recipe.train_size),
        "batch_size": recipe.global_batch_size,
        "opt": recipe.opt,
        "dtype": name_of(amp_dtype(recipe.amp_dtype, device)),
        "device": str(device),
        "seconds": options.seconds,
        "rounds": options.rounds,
        **asdict(options.acceleration),
        "threads": torch.get_num_threads(),
    }
