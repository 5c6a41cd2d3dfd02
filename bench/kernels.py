"""Each kernel against its floor: `python -m rsbdali.bench.kernels [--device cuda] [--json FILE]`.

The floor is the bytes that an op has to read and write over the bandwidth of a copy measured on the same device. On a
CPU the plain ways run, on small batches: a dry run. `--once` runs each op once, for compute-sanitizer to look at.

RandAugment is compared with Pillow on 64 rows first. If it differs it is not timed, and the program ends with 1.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from rsbdali.bench.measure.timing import copy_bandwidth, finisher, seconds_of
from rsbdali.bench.race.kernel_cases import GROUPS, Case, cases
from rsbdali.distributed.devices import resolve_device
from rsbdali.environment import machine_record, write_record
from rsbdali.recipe import Recipe

CPU_ROWS = 16
Write = Callable[[dict[str, Any]], None]


def measure(
    recipe: Recipe, rows: int, device: torch.device, only: str | None = None, write: Write = lambda _: None
) -> dict[str, Any]:
    """Time every case that is right; the record, times in microseconds.

    Args:
        recipe: see `kernel_cases.cases`; the next two as well.
        rows: of a batch.
        device: where.
        only: one of `kernel_cases.GROUPS`; None for all.
        write: called with the record so far after each case.
    """
    bandwidth = copy_bandwidth(device)
    record: dict[str, Any] = {
        "kind": "kernels",
        "finished": False,
        "machine": machine_record(),
        "config": {"device": str(device), "rows": rows, "train_size": list(recipe.train_size), "model": recipe.model},
        "copy_bytes_per_s": bandwidth,
        "results": [],
        "wrong": {},
    }
    for case in cases(recipe, rows, device, only):
        if wrong := case.wrong():
            record["wrong"][case.name] = wrong
        else:
            record["results"].append(against_floor(case, seconds_of(case.calls, device), bandwidth))
        write(record)
    return record | {"finished": True}


def against_floor(case: Case, seconds: float, bandwidth: float) -> dict[str, Any]:
    """A case's row: its time, its floor, and one by the other."""
    floor_s = case.bytes / bandwidth
    return {
        "name": case.name,
        "dtype": case.dtype,
        "bytes": case.bytes,
        "us": 1e6 * seconds,
        "floor_us": 1e6 * floor_s,
        "times_floor": seconds / floor_s,
        "share_of_copy": floor_s / seconds,
    }


def print_kernels(console: Console, record: dict[str, Any]) -> None:
    """A row a kernel."""
    config, bandwidth = record["config"], record["copy_bytes_per_s"]
    height, width = config["train_size"]
    table = Table(
        title=f"{config['rows']} images of {height} x {width} px, {config['device']}",
        caption=f"floor: least bytes over the {bandwidth / 1e9:,.0f} GB/s that a copy reads and writes",
    )
    table.add_column("op")
    table.add_column("type")
    for heading in ("MB", "µs", "floor, µs", "by floor", "of a copy"):
        table.add_column(heading, justify="right")
    for r in record["results"]:
        table.add_row(
            r["name"],
            r["dtype"],
            f"{r['bytes'] / 1e6:,.1f}",
            f"{r['us']:,.1f}",
            f"{r['floor_us']:,.1f}",
            f"{r['times_floor']:.2f} ×",
            f"{r['share_of_copy']:.0%}",
        )
    console.print(table)
    for name, wrong in record["wrong"].items():
        console.print(f"{name}: WRONG, not timed: {wrong}", markup=False)


def run_once(recipe: Recipe, rows: int, device: torch.device, only: str | None, console: Console) -> bool:
    """Run each case once, and wait for it. Whether all are right."""
    right = True
    for case in cases(recipe, rows, device, only):
        case.calls[0]()
        finisher(device)()
        wrong = case.wrong()
        right = right and wrong is None
        console.print(f"{case.name}, {case.dtype}: {'ran' if wrong is None else f'WRONG: {wrong}'}", markup=False)
    return right


def main(
    *, device: str, rows: int | None, size: int, model: str, only: str | None, once: bool, json: Path | None
) -> int:
    """Measure, print, write. The exit status: 1 where an op was wrong."""
    target, console = resolve_device(device), Console()
    recipe = Recipe.load("a3", {"img_size": size, "model": model})
    count = rows or (recipe.global_batch_size // recipe.mix_groups if target.type == "cuda" else CPU_ROWS)
    if once:
        return 0 if run_once(recipe, count, target, only, console) else 1

    def write(record: dict[str, Any]) -> None:
        if json:
            write_record(json, record)

    record = measure(recipe, count, target, only, write)
    write(record)
    print_kernels(console, record)
    return 1 if record["wrong"] else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, help="of a batch (default: a mix group; 16 on a CPU)")
    parser.add_argument("--size", type=int, default=160, help="pixels")
    parser.add_argument("--model", default="resnet50", help="whose parameters LAMB steps")
    parser.add_argument("--only", choices=GROUPS, help="these ops alone")
    parser.add_argument("--once", action="store_true", help="run each op once and time nothing")
    parser.add_argument("--json", type=Path)
    sys.exit(main(**vars(parser.parse_args())))
