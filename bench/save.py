"""What a checkpoint in mid-epoch costs: a save beside the step that it interrupts.

    python -m rsbdali.bench.save [--recipe a3] [--batch-size N] [--device auto] [--folder DIR] [--json FILE]

Rounds of: some steps alone; a copy of the state to the CPU, for which training waits; the file, which a thread writes
(fsync included) while steps go on. `share` is what a save adds to a run that saves every ten minutes.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from rsbdali.bench.measure.timing import finisher
from rsbdali.bench.race.synthetic import NUM_CLASSES, Synthetic, step_recipe
from rsbdali.distributed.devices import resolve_device
from rsbdali.distributed.world import World
from rsbdali.environment import machine_record, write_record
from rsbdali.recipe import Recipe
from rsbdali.runs.checkpoint import snapshot, write
from rsbdali.runs.state import Identity, RunState
from rsbdali.training.acceleration import PLAIN, make_step
from rsbdali.training.precision import amp_dtype, kernel_policy
from rsbdali.training.train import make_state

ROWS = {"cuda": 512, "cpu": 8}
ROUNDS, ALONE_STEPS, WARM_STEPS = 3, 3, 2
INTERVAL_S = 600.0


@dataclass(frozen=True)
class SaveCost:
    """Medians over the rounds, in ms.

    Attributes:
        step_ms: of a step alone.
        copy_ms: that training waits for a save: the state's copy on the CPU.
        write_ms: until the file is on the disk, beside training.
        beside_ms: of a step while the file is written.
        file_mib: size of the file.
    """

    step_ms: float
    copy_ms: float
    write_ms: float
    beside_ms: float
    file_mib: float

    @property
    def share(self) -> float:
        """Part of the time that saves take of a run with one every ten minutes."""
        slower = max(0.0, 1 - self.step_ms / self.beside_ms) * self.write_ms
        return (self.copy_ms + slower) / 1000 / INTERVAL_S


def measure(recipe: Recipe, device: torch.device, folder: Path) -> SaveCost:
    """Measure saves of a recipe's run.

    Args:
        recipe: from `step_recipe`.
        device: of the model.
        folder: where the file is written.
    """
    state, dtype = make_state(recipe, NUM_CLASSES, device), amp_dtype(recipe.amp_dtype, device)
    identity = Identity(recipe, tuple(map(str, range(NUM_CLASSES))), recipe.mix_groups, 1)
    one_step = _stepper(state, recipe, device, dtype)
    path, alone, copies, writes, beside = folder / "save.pth.tar", [], [], [], []
    for _ in range(WARM_STEPS):
        one_step()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(ROUNDS):
            alone += [_seconds(one_step) for _ in range(ALONE_STEPS)]
            begin = time.perf_counter()
            content = snapshot(state.to_checkpoint(identity, None))
            copies.append(time.perf_counter() - begin)
            written = pool.submit(_seconds, partial(write, content, path))
            while not written.done():
                beside.append(_seconds(one_step))
            writes.append(written.result())
    step_ms, copy_ms, write_ms, beside_ms = (1000 * median(seconds) for seconds in (alone, copies, writes, beside))
    return SaveCost(step_ms, copy_ms, write_ms, beside_ms, path.stat().st_size / 2**20)


def _stepper(state: RunState, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """A function that makes one step on noise, and waits for its end."""
    parts = state.model, state.optimizer, state.scaler, recipe
    step = make_step(*parts, acceleration=PLAIN, device=device, world=World(), amp_dtype=dtype)
    noise, finish = Synthetic(recipe, device, dtype), finisher(device)

    def one_step() -> None:
        state.updates += 1
        step([noise.mixed()], update=state.updates)
        finish()

    return one_step


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def table(cost: SaveCost) -> Table:
    """The figures for people."""
    shown = Table("", "ms", box=None)
    shown.add_row("step alone", f"{cost.step_ms:.0f}")
    shown.add_row("save: training waits (copy to the CPU)", f"{cost.copy_ms:.0f}")
    shown.add_row(f"save: {cost.file_mib:.0f} MiB written beside training", f"{cost.write_ms:.0f}")
    shown.add_row("step meanwhile", f"{cost.beside_ms:.0f}")
    return shown


def main() -> None:
    """Measure and print; `--json` keeps the record."""
    parser = argparse.ArgumentParser(prog="python -m rsbdali.bench.save", description=__doc__)
    parser.add_argument("--recipe", default="a3")
    parser.add_argument("--batch-size", type=int, help="rows of a step; 512 on a GPU, 8 on a CPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, help="where the file is written; a temporary one by default")
    parser.add_argument("--json", type=Path, help="write the record here")
    options = parser.parse_args()
    device, console = resolve_device(options.device), Console()
    recipe = step_recipe(Recipe.load(options.recipe), options.batch_size or ROWS[device.type])
    with kernel_policy(device, deterministic=False), tempfile.TemporaryDirectory(dir=options.folder) as folder:
        cost = measure(recipe, device, Path(folder))
    console.print(table(cost))
    console.print(f"one save every ten minutes takes {100 * cost.share:.3f} % of the time")
    if options.json is not None:
        config = {"model": recipe.model, "batch_size": recipe.global_batch_size, "device": str(device)}
        write_record(options.json, {"machine": machine_record(), "config": config, **asdict(cost), "share": cost.share})


if __name__ == "__main__":
    main()
