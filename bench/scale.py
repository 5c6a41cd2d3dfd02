"""What ImageNet's size and many ranks cost the host: a simulation, without an image.

    python -m rsbdali.bench.scale [--images N] [--json FILE]

A made-up index of N images with ImageNet's mean path length and sizes; then, for worlds of 1 to 256 ranks, the time a
rank takes to plan a step of a global batch of 2048 rows, and to start an epoch (its permutation). Every rank plans the
whole global batch and takes its groups out of it, so a step costs each of them about the same. Times are CPU time of
the one thread that does it, which other programs on the machine disturb less than the clock's.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from rsbdali.data.index import ImageIndex
from rsbdali.data.sources.folder import FileReader
from rsbdali.environment import machine_record
from rsbdali.plan.planner import Planner
from rsbdali.plan.sampler import epoch_order
from rsbdali.recipe import Recipe

IMAGES, CLASSES = 1_281_167, 1000
WORLDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SIZES = (20_000, 80_000, 320_000, IMAGES, 4 * IMAGES)
PATH = "n01440764/n01440764_10026.JPEG"
STEPS, REPEATS = 20, 5


@dataclass(frozen=True)
class OfSize:
    """Cost of a data set's size, one rank.

    Attributes:
        images: N.
        index_bytes: of the index's columns, in each rank.
        epoch_start_ms: of the permutation, median of REPEATS.
        plan_ms: of a global batch of 2048 rows, median of STEPS.
    """

    images: int
    index_bytes: int
    epoch_start_ms: float
    plan_ms: float


@dataclass(frozen=True)
class OfWorld:
    """Cost of a world's size, each rank.

    Attributes:
        ranks: W.
        rows: of the global batch that are this rank's.
        groups: mix groups that this rank owns.
        plan_ms: of one step: the global batch and this rank's groups out of it, median of STEPS.
    """

    ranks: int
    rows: int
    groups: int
    plan_ms: float


def made_up_index(n: int, seed: int = 0) -> ImageIndex:
    """An index of n images that do not exist: paths as long as ImageNet's, sides of 300 to 600 pixels."""
    rng = np.random.default_rng(seed)
    path_bytes = np.tile(np.frombuffer(PATH.encode(), np.uint8), n)
    sides_2N = rng.integers(300, 601, (2, n)).astype(np.int32)
    return ImageIndex(
        root=Path("/made-up"),
        reader=FileReader("/made-up"),
        classes=tuple(f"n{i:08d}" for i in range(CLASSES)),
        label_N=rng.integers(CLASSES, size=n).astype(np.int32),
        width_N=sides_2N[0],
        height_N=sides_2N[1],
        nbytes_N=np.full(n, 110_000),
        format_N=np.ones(n, np.uint8),
        flags_N=np.zeros(n, np.uint8),
        path_bytes=path_bytes,
        path_end_N=np.arange(1, n + 1) * len(PATH),
        shard_N=np.empty(0, np.int32),
        offset_N=np.empty(0, np.int64),
    )


def of_size(n: int, recipe: Recipe) -> OfSize:
    """Measure one size of the data set."""
    index = made_up_index(n)
    planner = Planner(index.width_N, index.height_N, recipe)
    epochs = iter(range(REPEATS))
    start = _median_ms(lambda: epoch_order(n, recipe.seed, next(epochs), recipe.aug_repeats), REPEATS)
    return OfSize(n, index.memory_bytes, start, _plan_ms(planner, range(planner.groups)))


def of_world(ranks: int, index: ImageIndex, recipe: Recipe) -> OfWorld:
    """Measure rank 0 of one world."""
    planner = Planner(index.width_N, index.height_N, recipe, ranks)
    mine = range(0, planner.groups, ranks)
    return OfWorld(ranks, len(mine) * planner.group_rows, len(mine), _plan_ms(planner, mine))


def _plan_ms(planner: Planner, groups: range) -> float:
    steps = iter(range(planner.steps_per_epoch))

    def step() -> None:
        number = next(steps)
        for group in groups:
            planner.group(0, number, group)

    step()  # with the epoch's permutation, which is measured by itself
    return _median_ms(step, min(STEPS, planner.steps_per_epoch - 1))


def _median_ms(work: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.process_time()
        work()
        taken.append(1000 * (time.process_time() - start))
    return median(taken)


def tables(sizes: list[OfSize], worlds: list[OfWorld]) -> list[Table]:
    """Both measurements for people."""
    by_size = Table(
        "images", "index MiB a rank", "bytes an image", "epoch start CPU-ms", "plan of 2048 rows CPU-ms", box=None
    )
    for s in sizes:
        each = f"{s.index_bytes / s.images:.0f}"
        by_size.add_row(
            f"{s.images:,}", f"{s.index_bytes / 2**20:.1f}", each, f"{s.epoch_start_ms:.1f}", f"{s.plan_ms:.2f}"
        )
    by_world = Table("ranks", "rows a rank", "groups a rank", "plan, CPU-ms", box=None)
    for w in worlds:
        by_world.add_row(str(w.ranks), str(w.rows), str(w.groups), f"{w.plan_ms:.2f}")
    return [by_size, by_world]


def main() -> None:
    """Measure and print; `--json` keeps the record."""
    parser = argparse.ArgumentParser(prog="python -m rsbdali.bench.scale", description=__doc__)
    parser.add_argument("--images", type=int, default=IMAGES, help="of the table by world")
    parser.add_argument("--json", type=Path, help="write the record here")
    options = parser.parse_args()
    recipe, console = Recipe.load("a3"), Console()
    sizes = [of_size(n, recipe) for n in SIZES]
    index = made_up_index(options.images)
    worlds = [of_world(ranks, index, recipe) for ranks in WORLDS]
    for table in tables(sizes, worlds):
        console.print(table)
    if options.json is not None:
        rows = {"sizes": [asdict(s) for s in sizes], "worlds": [asdict(w) for w in worlds]}
        options.json.write_text(
            json.dumps({"machine": machine_record(), "images": options.images, **rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
