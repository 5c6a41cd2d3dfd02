"""The loader beside the training step: `python -m rsbdali.bench.gpu_share DATA [--device cuda] [--json FILE]`.

As in training: each step takes the next batch of the loader, in one process. Windows of it alternate with windows of
the same step on one batch that is there, so that their difference is what the loader takes from the step. Three
loaders: `graph`; `graph` without RandAugment, so that their difference is RandAugment's; `host`, which takes nothing
from the GPU but copies and kernels. A thread that wants the interpreter's lock every millisecond measures how long
it was kept. On a CPU there is no GPU time to see: a dry run.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from rsbdali.bench.material import enough_images
from rsbdali.bench.measure.gpu_time import gpu_us_per_image
from rsbdali.bench.measure.heartbeat import Heartbeat
from rsbdali.bench.measure.timing import finisher
from rsbdali.bench.race.feeds import PREFETCH, forever
from rsbdali.bench.race.model_step import warm_up_steps
from rsbdali.bench.race.our_step import OurStep
from rsbdali.bench.race.out_of_memory import dropped_where_memory_ends
from rsbdali.bench.race.synthetic import step_recipe
from rsbdali.data.index import ImageIndex
from rsbdali.data.splits import open_split
from rsbdali.distributed.devices import default_threads, resolve_device
from rsbdali.environment import machine_record, write_record
from rsbdali.loader import TrainLoader
from rsbdali.recipe import Recipe
from rsbdali.training.precision import amp_dtype, kernel_policy, name_of

READY = 2 * PREFETCH + 1  # most batches that a loader keeps prepared
CPU_ROWS = 16
GAPS = "longest_gap_ms_alone", "longest_gap_ms_beside"
Write = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Kind:
    """A loader: its name, its decode mode, and what of the recipe is different."""

    name: str
    decode: str
    changes: dict[str, Any]


KINDS = (
    Kind("graph", "graph", {}),
    Kind("graph, no RandAugment", "graph", {"aa": None}),
    Kind("cpu", "cpu", {}),
)


class Beside:
    """A loader and the training step that takes its batches.

    Args:
        step: trains on `step.batch`.
        loader: made for the step's recipe and device.
        device: of both.
        seconds: of a window.
    """

    def __init__(self, step: OurStep, loader: TrainLoader, device: torch.device, seconds: float) -> None:
        self._step, self._loader, self._seconds = step, loader, seconds
        self._lying, self._batches, self._finish = step.batch, forever(loader), finisher(device)
        self.windows: list[dict[str, float]] = []

    def take(self) -> torch.Tensor:
        """Make the loader's next batch the step's; its images."""
        batch = next(self._batches)
        self._step.batch = batch
        return batch.images

    def round(self) -> None:
        """A window of the step alone, and one with the loader."""
        for _ in range(READY + 1):  # its threads, its memory; then it pauses with its queue full
            self.take()
        self._step.batch = self._lying
        alone = self._window(lambda: None)
        for _ in range(READY + 1):  # what it had ready is not to be counted
            self.take()
            self._step()
        beside = self._window(self.take)
        names = "step_ms", "wait_ms", "longest_gap_ms"
        self.windows.append(
            {f"{name}_alone": value for name, value in zip(names, alone, strict=True)}
            | {f"{name}_beside": value for name, value in zip(names, beside, strict=True)}
        )

    def _window(self, take: Callable[[], object]) -> tuple[float, float, float]:
        """Milliseconds: of a step, of its wait for the batch, and of the heartbeat's longest gap."""
        self._finish()
        waited, steps, begin = 0.0, 0, time.perf_counter()
        with Heartbeat() as heart:
            while steps < 2 or time.perf_counter() - begin < self._seconds:
                before = time.perf_counter()
                take()
                waited += time.perf_counter() - before
                self._step()
                steps += 1
            self._finish()
            elapsed = time.perf_counter() - begin
        return 1e3 * elapsed / steps, 1e3 * waited / steps, 1e3 * heart.longest_s

    def figures(self) -> dict[str, float]:
        """Medians over the windows; of gaps the longest; `slower`: a step with the loader by the one beside it."""
        found = {
            name: (max if "gap" in name else statistics.median)([window[name] for window in self.windows])
            for name in ("step_ms_alone", "step_ms_beside", "wait_ms_beside", *GAPS)
        }
        return found | {"slower": statistics.median(w["step_ms_beside"] / w["step_ms_alone"] for w in self.windows)}


def measure(
    recipe: Recipe,
    data: Path,
    device: torch.device,
    *,
    seconds: float,
    rounds: int,
    workers: int,
    write: Write = lambda _: None,
) -> dict[str, Any]:
    """The record: for each loader the step without and with it, and its GPU time alone.

    Args:
        recipe: from `synthetic.step_recipe`.
        data: images in class folders; linked to as often as needed.
        device: of the loader and the step.
        seconds: of each window.
        rounds: windows with a loader, each beside one without.
        workers: CPU threads of the loader.
        write: called with the record so far after each round.
    """
    dtype = amp_dtype(recipe.amp_dtype, device)
    record: dict[str, Any] = {
        "kind": "gpu_share",
        "finished": False,
        "machine": machine_record(),
        "config": {
            "recipe": recipe.name,
            "model": recipe.model,
            "train_size": list(recipe.train_size),
            "batch_size": recipe.global_batch_size,
            "workers": workers,
            "device": str(device),
            "dtype": name_of(dtype),
            "seconds": seconds,
            "rounds": rounds,
        },
        "loaders": [],
        "skipped": {},
        "randaugment": None,
    }
    with kernel_policy(device, deterministic=False), tempfile.TemporaryDirectory(prefix="rsbdali-share-") as folder:
        root, _ = enough_images(open_split(data, "any"), recipe.global_batch_size, Path(folder))
        index = ImageIndex.load(root, cache_dir=Path(folder, "cache"))
        step = OurStep(recipe, device, mixed=False)
        for _ in range(warm_up_steps(device)):
            step()
        lying = step.batch

        def open_loader(kind: Kind) -> TrainLoader:
            changed = Recipe.from_dict(recipe.to_dict() | kind.changes)
            more: dict[str, Any] = {"dtype": dtype, "num_threads": workers, "prefetch": PREFETCH}
            return TrainLoader(index, changed, device=device, decode=kind.decode, **more)

        for kind in KINDS:
            step.batch = lying
            before = list(record["loaders"])
            with dropped_where_memory_ends(kind.name, record["skipped"]):
                for figures in _rounds(partial(open_loader, kind), step, device, seconds, rounds):
                    record["loaders"] = [*before, {"name": kind.name, **figures}]
                    write(record)
            if kind.name in record["skipped"]:
                record["loaders"] = before
    return record | {"finished": True, "randaugment": randaugment_cost(record["loaders"], recipe.global_batch_size)}


def _rounds(
    open_loader: Callable[[], TrainLoader], step: OurStep, device: torch.device, seconds: float, rounds: int
) -> Iterator[dict[str, Any]]:
    """A loader's figures after each round, and at last with its GPU time."""
    loader = open_loader()
    try:
        beside = Beside(step, loader, device, seconds)
        for _ in range(rounds):
            beside.round()
            yield {"gpu_us": None, **beside.figures()}
        if device.type == "cuda":
            yield {**beside.figures(), "gpu_us": gpu_us_per_image(beside.take, READY)}
    finally:
        loader.close()


def randaugment_cost(loaders: list[dict[str, Any]], rows: int) -> dict[str, float | None] | None:
    """What RandAugment alone takes: `graph` less the one without it.

    Returns:
        gpu_ms: GPU time a batch, None on a CPU; step_ms: what it adds to a step that runs beside the loader;
        share_of_step: gpu_ms by the step without a loader, None on a CPU. None where one of the two is missing.
    """
    by_name = {loader["name"]: loader for loader in loaders}
    with_it, without = (by_name.get(kind.name) for kind in KINDS[:2])
    if with_it is None or without is None:
        return None
    gpu_ms = None if with_it["gpu_us"] is None else (with_it["gpu_us"] - without["gpu_us"]) * rows / 1e3
    return {
        "gpu_ms": gpu_ms,
        "step_ms": with_it["step_ms_beside"] - without["step_ms_beside"],
        "share_of_step": None if gpu_ms is None else gpu_ms / with_it["step_ms_alone"],
    }


def print_share(console: Console, record: dict[str, Any]) -> None:
    """A row a loader, then what RandAugment takes, where it is above the noise."""
    c, cost = record["config"], record["randaugment"]
    table = Table(
        title=f"{c['recipe']}, {c['model']}, batch {c['batch_size']}, {c['dtype']}, {c['device']}",
        caption="GPU-µs an image, of the loader alone; ms of a step without and with it; longest gap: of a thread that "
        "wants the interpreter's lock every ms",
    )
    table.add_column("loader", no_wrap=True)
    headings = ("GPU-µs", "step alone", "step with it", "by alone", "of that waiting", "longest gap", "alone")
    for heading in headings:
        table.add_column(heading, justify="right")
    for loader in record["loaders"]:
        gpu = "not run" if loader["gpu_us"] is None else f"{loader['gpu_us']:,.1f}"
        times = [f"{loader[name]:,.1f}" for name in ("step_ms_alone", "step_ms_beside")]
        gaps = [f"{loader[name]:,.1f}" for name in ("wait_ms_beside", *reversed(GAPS))]
        table.add_row(loader["name"], gpu, *times, f"{loader['slower']:.2f} ×", *gaps)
    console.print(table)
    for name, why in record["skipped"].items():
        console.print(f"{name} did not take part: {why}", markup=False)
    if cost is not None:
        console.print(f"RandAugment: {_cost(cost)}", markup=False)


def _cost(cost: dict[str, float | None]) -> str:
    gpu_ms, step_ms = cost["gpu_ms"], cost["step_ms"] or 0.0
    said = "its GPU time was not run"
    if gpu_ms is not None:
        share = cost["share_of_step"] or 0.0
        said = f"{gpu_ms:.2f} ms of GPU time a batch, {share:.1%} of a step"
        said = said if gpu_ms > 0 else "its GPU time is below the noise"
    added = f"it adds {step_ms:.1f} ms to a step beside it" if step_ms > 0 else "a step beside it is no longer for it"
    return f"{said}; {added}"


def main(
    *,
    data: Path,
    device: str,
    overrides: list[str],
    batch_size: int | None,
    seconds: float,
    rounds: int,
    json: Path | None,
) -> None:
    """Measure, print, write."""
    target = resolve_device(device)
    recipe = Recipe.load("a3", dict(pair.split("=", 1) for pair in overrides))
    group = recipe.global_batch_size // recipe.mix_groups
    rows = batch_size or (group if target.type == "cuda" else CPU_ROWS)

    def write(record: dict[str, Any]) -> None:
        if json:
            write_record(json, record)

    chosen = step_recipe(recipe, rows)
    record = measure(chosen, data, target, seconds=seconds, rounds=rounds, workers=default_threads(), write=write)
    write(record)
    print_share(Console(), record)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--batch-size", type=int, help="rows of a step (default: a mix group; 16 on a CPU)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a window; it holds two steps at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    main(**vars(parser.parse_args()))
