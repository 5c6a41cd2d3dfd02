"""What the data path takes from the GPU: `python -m rsbdali.bench.gpu_share DATA [--device cuda] [--json FILE]`.

Each rung of the ladder (decode, + crop and resize, + RandAugment, + mix and normalise, the whole loader) is measured
alone, by its GPU time, and beside the training step: a step on synthetic data follows each batch that is taken from
the rung, in this process, as in training. What RandAugment adds to the step is what a fused kernel for it could save.
On a CPU there is no GPU time to see: a dry run.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from rsbdali.bench.material import enough_images
from rsbdali.bench.measure.gpu_time import gpu_us_per_image
from rsbdali.bench.measure.timing import finisher
from rsbdali.bench.race.contestant import build
from rsbdali.bench.race.feeds import Feed, FeedSpec
from rsbdali.bench.race.model_step import warm_up_steps
from rsbdali.bench.race.our_step import OurStep
from rsbdali.bench.race.synthetic import step_recipe
from rsbdali.data.index import ImageIndex
from rsbdali.data.splits import find_images
from rsbdali.distributed.devices import default_threads, resolve_device
from rsbdali.environment import machine_record, write_record
from rsbdali.recipe import Recipe
from rsbdali.training.precision import amp_dtype, kernel_policy, name_of

RUNGS = ("decode", "crop+resize", "RandAugment", "mix+normalise", "on device")
CPU_ROWS = 16


def measure(
    recipe: Recipe, data: Path, device: torch.device, *, steps: int, rounds: int, workers: int
) -> dict[str, Any]:
    """The record: for each rung its GPU time alone, and the step with it.

    Args:
        recipe: from `synthetic.step_recipe`.
        data: images in class folders; linked to as often as needed.
        device: of the data path and the step.
        steps: of each measured window.
        rounds: windows with the rung, each beside one without.
        workers: CPU threads of the data path.
    """
    finish = finisher(device)
    with kernel_policy(device, deterministic=False), tempfile.TemporaryDirectory(prefix="rsbdali-share-") as folder:
        rows = recipe.global_batch_size
        root, _ = enough_images(ImageIndex.load(find_images(data)), rows, Path(folder))
        spec = FeedSpec(
            kind="",
            root=str(root),
            cache_dir=f"{folder}/cache",
            recipe=recipe.to_dict(),
            batch_size=rows,
            workers=workers,
            device=str(device),
        )
        step = OurStep(recipe, device, mixed=False)
        for _ in range(warm_up_steps(device)):
            step()
        rungs = []
        for name in RUNGS:
            feed = build(spec.as_kind(f"stage:{name}"))
            gpu_us = gpu_us_per_image(feed.deliver, feed.ready) if device.type == "cuda" else None
            rungs.append({"name": name, "gpu_us": gpu_us, **_beside(step, feed, finish, steps, rounds)})
            feed.close()
    return {
        "kind": "gpu_share",
        "machine": machine_record(),
        "config": {
            "recipe": recipe.name,
            "model": recipe.model,
            "train_size": list(recipe.train_size),
            "batch_size": rows,
            "workers": workers,
            "device": str(device),
            "dtype": name_of(amp_dtype(recipe.amp_dtype, device)),
            "steps": steps,
            "rounds": rounds,
        },
        "rungs": rungs,
        "randaugment": randaugment_cost(rungs, rows),
    }


def _beside(step: OurStep, feed: Feed, finish: Callable[[], None], steps: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a step without and with the feed, and what of it the host stood waiting for the feed."""
    for _ in range(feed.ready + 1):
        feed.deliver()
    alone, beside, waits = [], [], []
    for _ in range(rounds):
        finish()
        # the feed fills its queue meanwhile, and then stands still for most of the window
        alone.append(_window(step, lambda: None, finish, steps)[0])
        for _ in range(feed.ready + 1):  # what it had ready is not to be counted
            feed.deliver()
            step()
        total, wait = _window(step, feed.deliver, finish, steps)
        beside.append(total)
        waits.append(wait)
    return {
        "step_ms_alone": statistics.median(alone),
        "step_ms_beside": statistics.median(beside),
        "wait_ms": statistics.median(waits),
    }


def _window(
    step: Callable[[], int], deliver: Callable[[], object], finish: Callable[[], None], steps: int
) -> tuple[float, float]:
    """Milliseconds of a step, and of its wait for `deliver`."""
    finish()
    waited, begin = 0.0, time.perf_counter()
    for _ in range(steps):
        before = time.perf_counter()
        deliver()
        waited += time.perf_counter() - before
        step()
    finish()
    return 1e3 * (time.perf_counter() - begin) / steps, 1e3 * waited / steps


def randaugment_cost(rungs: list[dict[str, Any]], rows: int) -> dict[str, float | None]:
    """What RandAugment alone takes: its rung less the one before.

    Returns:
        gpu_ms: GPU time a batch, None on a CPU; step_ms: what it adds to a step that runs beside the data path;
        share_of_step: gpu_ms by the step without a data path, None on a CPU.
    """
    by_name = {rung["name"]: rung for rung in rungs}
    with_it, without = by_name["RandAugment"], by_name["crop+resize"]
    gpu_ms = None if with_it["gpu_us"] is None else (with_it["gpu_us"] - without["gpu_us"]) * rows / 1e3
    return {
        "gpu_ms": gpu_ms,
        "step_ms": with_it["step_ms_beside"] - without["step_ms_beside"],
        "share_of_step": None if gpu_ms is None else gpu_ms / with_it["step_ms_alone"],
    }


def print_share(console: Console, record: dict[str, Any]) -> None:
    """A row a rung, then what RandAugment takes."""
    c, cost = record["config"], record["randaugment"]
    table = Table(
        title=f"{c['recipe']}, {c['model']}, batch {c['batch_size']}, {c['dtype']}, {c['device']}",
        caption="each rung with all below it; GPU-µs an image, of the rung alone; ms of a step without and beside it",
    )
    table.add_column("data path up to")
    for heading in ("GPU-µs", "step alone", "step beside it", "of that waiting"):
        table.add_column(heading, justify="right")
    for rung in record["rungs"]:
        gpu = "not run" if rung["gpu_us"] is None else f"{rung['gpu_us']:,.1f}"
        times = [f"{rung[key]:,.1f}" for key in ("step_ms_alone", "step_ms_beside", "wait_ms")]
        table.add_row(rung["name"], gpu, *times)
    console.print(table)
    gpu_ms, step_ms = cost["gpu_ms"], cost["step_ms"]
    said, added = "its GPU time was not run", "a step beside it is no longer (below the noise)"
    if gpu_ms is not None:
        said = f"{gpu_ms:.2f} ms of GPU time a batch, {cost['share_of_step']:.1%} of a step"
        said = said if gpu_ms > 0 else "its GPU time is below the noise"
    if step_ms > 0:
        added = f"it adds {step_ms:.1f} ms to a step beside it"
    console.print(f"RandAugment: {said}; {added}", markup=False)


def main(
    *, data: Path, device: str, overrides: list[str], batch_size: int | None, steps: int, rounds: int, json: Path | None
) -> None:
    """Measure, print, write."""
    place = resolve_device(device)
    recipe = Recipe.load("a3", dict(pair.split("=", 1) for pair in overrides))
    group = recipe.global_batch_size // recipe.mix_groups
    rows = batch_size or (group if place.type == "cuda" else CPU_ROWS)
    record = measure(step_recipe(recipe, rows), data, place, steps=steps, rounds=rounds, workers=default_threads())
    print_share(Console(), record)
    if json:
        write_record(json, record)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--batch-size", type=int, help="rows of a step (default: a mix group; 16 on a CPU)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    main(**vars(parser.parse_args()))
