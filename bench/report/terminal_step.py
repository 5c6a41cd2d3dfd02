"""The record of bench-step on a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from rsbdali.bench.measure.phases import PARTS


def print_step(console: Console, record: dict[str, Any]) -> None:
    """The rates, then the parts of a step, then the ceiling they are held against."""
    console.print(_rates(record))
    for name, why in record["skipped"].items():
        console.print(f"{name} did not take part: {why}", markup=False)
    for r in record["results"]:
        console.print(f"{r['name']}: {r['note']}", style="dim", markup=False)
    console.print(_parts(record["results"]))
    config, ceiling = record["config"], record["ceiling"]
    console.print(
        f"an image: {ceiling['flops_per_image'] / 1e9:.2f} GFLOP forward and backward; {config['device']} multiplies "
        f"matrices in {config['dtype']} at {ceiling['matmul_flops_per_s'] / 1e12:.3g} TFLOP/s",
        markup=False,
    )


def _rates(record: dict[str, Any]) -> Table:
    c = record["config"]
    height, width = c["train_size"]
    table = Table(
        title=f"{c['recipe']}: training step of {c['model']}, {height} x {width} px, batch {c['batch_size']}, "
        f"{c['dtype']}, {c['device']}",
        caption=f"synthetic data; {c['rounds']} × {c['seconds']:g} s, interleaved\n"
        "of peak: the model's operations by the matmul's\nrsbdali by it: median of the rounds' own ratios",
    )
    table.add_column("step")
    for heading in ("images/s", "min – max", "ms a step", "of peak", "rsbdali by it"):
        table.add_column(heading, justify="right", no_wrap=True)
    for r in record["results"]:
        rate, by_it = r["images_per_s"], record["ratio_to"].get(r["name"])
        table.add_row(
            r["name"],
            figure(rate["median"]),
            f"{figure(rate['min'])} – {figure(rate['max'])}",
            f"{r['step_ms']:,.1f}",
            f"{r['utilisation']:.0%}",
            "" if by_it is None else f"{by_it:.2f} ×",
        )
    return table


def _parts(results: list[dict[str, Any]]) -> Table:
    table = Table(title="where a step's time goes: ms of each part, median, measured apart from the rounds")
    table.add_column("step")
    for part in PARTS:
        table.add_column(part, justify="right")
    for r in results:
        if r["parts_ms"] is not None:
            table.add_row(r["name"], *(f"{r['parts_ms'][p]:,.2f}" if p in r["parts_ms"] else "–" for p in PARTS))
    return table


def figure(value: float) -> str:
    """Thousands by commas, one digit behind the point below a hundred: 9,830 or 48.2."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
