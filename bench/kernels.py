"""Each kernel against its floor: `python -m rsbdali.bench.kernels [--device cuda] [--json FILE]`.

The floor is the bytes that an op has to read and write over the bandwidth of a copy measured on the same device. On a
CPU the plain ways run, on small batches: a dry run. `--once` runs each op once, for compute-sanitizer to look at.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from rsbdali.bench.measure.timing import copy_bandwidth, finisher, seconds_of
from rsbdali.bench.race.kernel_cases import Case, cases
from rsbdali.distributed.devices import resolve_device
from rsbdali.environment import machine_record, write_record
from rsbdali.recipe import Recipe

CPU_ROWS = 16


def measure(recipe: Recipe, rows: int, device: torch.device) -> dict[str, Any]:
    """Time every case; the record, times in microseconds."""
    bandwidth = copy_bandwidth(device)
    results = [against_floor(case, seconds_of(case.calls, device), bandwidth) for case in cases(recipe, rows, device)]
    return {
        "kind": "kernels",
        "machine": machine_record(),
        "config": {"device": str(device), "rows": rows, "train_size": list(recipe.train_size), "model": recipe.model},
        "copy_bytes_per_s": bandwidth,
        "results": results,
    }


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


def run_once(recipe: Recipe, rows: int, device: torch.device, console: Console) -> None:
    """Run each case once, and wait for it."""
    for case in cases(recipe, rows, device):
        case.calls[0]()
        finisher(device)()
        console.print(f"{case.name}, {case.dtype}: ran", markup=False)


def main(*, device: str, rows: int | None, size: int, model: str, once: bool, json: Path | None) -> None:
    """Measure, print, write."""
    place, console = resolve_device(device), Console()
    recipe = Recipe.load("a3", {"img_size": size, "model": model})
    count = rows or (recipe.global_batch_size // recipe.mix_groups if place.type == "cuda" else CPU_ROWS)
    if once:
        run_once(recipe, count, place, console)
        return
    record = measure(recipe, count, place)
    print_kernels(console, record)
    if json:
        write_record(json, record)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, help="of a batch (default: a mix group; 16 on a CPU)")
    parser.add_argument("--size", type=int, default=160, help="pixels")
    parser.add_argument("--model", default="resnet50", help="whose parameters LAMB steps")
    parser.add_argument("--once", action="store_true", help="run each op once and time nothing")
    parser.add_argument("--json", type=Path)
    main(**vars(parser.parse_args()))
