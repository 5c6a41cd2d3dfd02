"""Does a plan give the same pixels each time? `python -m rsbdali.bench.same_plan DATA [--device cuda] [--json FILE]`.

One plan is made 50 times while the model trains beside it, as in a run: kernels of two streams and DALI's at once,
batches in flight. Another plan is made in between: a kernel that reads its memory too early, or too late, would else
find the right pixels there from the time before. Ends with 1 if a batch was not like the first.
"""

import argparse
import sys
import tempfile
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from rsbdali.bench.material import enough_images
from rsbdali.bench.race.feeds import PREFETCH
from rsbdali.bench.race.our_step import OurStep
from rsbdali.bench.race.synthetic import step_recipe
from rsbdali.data.index import ImageIndex
from rsbdali.data.splits import open_split
from rsbdali.distributed.devices import default_threads, resolve_device
from rsbdali.environment import machine_record, write_record
from rsbdali.loader.decode_mode import create_executor
from rsbdali.pipelines.executor import Executor
from rsbdali.plan.planner import BatchPlan, Planner
from rsbdali.recipe import Recipe
from rsbdali.training.precision import kernel_policy

PLANS = 2
CPU_ROWS = 16


def unlike_first(executor: Executor, plans: list[BatchPlan], times: int, step: OurStep) -> list[list[int]]:
    """Make each plan some times, one after the other in turn, with a training step behind each batch.

    Args:
        executor: makes them.
        plans: one or more.
        times: of each.
        step: what else the device has to do.

    Returns:
        For each plan how many rows of each batch after its first were not like the first's: `times` − 1 counts.
    """
    turns = cycle(plans)
    for _ in range(PREFETCH):
        executor.submit(next(turns))
    firsts: list[torch.Tensor] = []
    counts: list[list[torch.Tensor]] = [[] for _ in plans]
    for number in range(times * len(plans)):
        which = number % len(plans)
        images_NHWC = executor.collect().images_NHWC
        executor.submit(next(turns))
        if number < len(plans):
            firsts.append(images_NHWC.clone())
        else:  # counted on the device: reading the count would wait, and end the load
            counts[which].append((images_NHWC != firsts[which]).flatten(1).any(dim=1).sum())
        step()
    return [torch.stack(found).tolist() for found in counts]


def measure(
    recipe: Recipe, data: Path, device: torch.device, *, decode: str, times: int, workers: int
) -> dict[str, Any]:
    """The record.

    Args:
        recipe: from `synthetic.step_recipe`.
        data: images in class folders; linked to as often as needed.
        device: of the executor and the step.
        decode: mode of the executor (`loader.decode_mode`).
        times: how often a plan is made; at least 2.
        workers: CPU threads of the executor.
    """
    rows = recipe.global_batch_size
    with kernel_policy(device, deterministic=False), tempfile.TemporaryDirectory(prefix="rsbdali-same-") as folder:
        root, _ = enough_images(open_split(data, "any"), rows, Path(folder))
        index = ImageIndex.load(root, cache_dir=Path(folder, "cache"))
        planner = Planner(index.width_N, index.height_N, recipe)
        made_by = create_executor(decode, index, recipe, rows=rows, device=device, num_threads=workers)
        try:
            plans = [planner.group(0, number, 0) for number in range(PLANS)]
            unlike = unlike_first(made_by, plans, times, OurStep(recipe, device, mixed=False))
        finally:
            made_by.close()
    return {
        "kind": "same_plan",
        "finished": True,
        "machine": machine_record(),
        "config": {
            "recipe": recipe.name,
            "model": recipe.model,
            "train_size": list(recipe.train_size),
            "batch_size": rows,
            "workers": workers,
            "device": str(device),
            "decode": decode,
            "times": times,
        },
        "unlike_rows": unlike,
        "equal": not any(map(any, unlike)),
    }


def verdict(record: dict[str, Any]) -> str:
    """A sentence for each plan."""
    lines = []
    for number, counts in enumerate(record["unlike_rows"]):
        unlike = [count for count in counts if count]
        said = "all equal"
        if unlike:
            rows = record["config"]["batch_size"]
            said = f"{len(unlike)} are NOT like the first, in up to {max(unlike)} of {rows} rows"
        lines.append(f"plan {number + 1}, made {len(counts) + 1} times by {record['config']['decode']}: {said}")
    return "\n".join(lines)


def main(
    *,
    data: Path,
    device: str,
    overrides: list[str],
    batch_size: int | None,
    decode: str,
    times: int,
    json: Path | None,
) -> int:
    """Measure, print, write. The exit status: 1 where batches differ."""
    target = resolve_device(device)
    recipe = Recipe.load("a3", dict(pair.split("=", 1) for pair in overrides))
    group = recipe.global_batch_size // recipe.mix_groups
    chosen = step_recipe(recipe, batch_size or (group if target.type == "cuda" else CPU_ROWS))
    record = measure(chosen, data, target, decode=decode, times=times, workers=default_threads())
    sys.stdout.write(verdict(record) + "\n")
    if json:
        write_record(json, record)
    return 0 if record["equal"] else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--batch-size", type=int, help="rows of a batch (default: a mix group; 16 on a CPU)")
    parser.add_argument("--decode", default="graph", help="graph (DALI's), gpu-roi, cpu or dali-exact")
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--json", type=Path)
    sys.exit(main(**vars(parser.parse_args())))
