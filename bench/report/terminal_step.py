"""The record of bench-step on a terminal."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from rsbdali.bench.measure.phases import PARTS
from rsbdali.bench.report.presence import processor


def print_step(console: Console, record: dict[str, Any]) -> None:
    """The rates, then the parts of a step, then the ceiling they are held against."""
    console.print(_rates(record))
    console.print(_legend(record), style="dim", markup=False)
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
    if record["warning"]:
        console.print(record["warning"], style="yellow", markup=False)
    console.print(record["verdict"], style="bold", markup=False)


def _rates(record: dict[str, Any]) -> Table:
    c = record["config"]
    height, width = c["train_size"]
    table = Table(
        title=f"{c['recipe']}: training step of {c['model']}, {height} x {width} px, batch {c['batch_size']}, "
        f"{c['dtype']}, {c['device']}",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("step", overflow="fold")
    for heading in (
        "images/s",
        "min – max",
        "ms\na step",
        "of\npeak",
        "of\ncores",
        "load",
        "by\nim/s",
        "by\nCPU-µs",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for r in record["results"]:
        rate = r["images_per_s"]
        table.add_row(
            r["name"],
            figure(rate["median"]),
            f"{figure(rate['min'])} – {figure(rate['max'])}",
            f"{r['step_ms']:,.1f}",
            f"{r['utilization']:.0%}",
            f"{r['cpu_share']:.0%}",
            f"{r['load']:.1f}",
            times(record["ratio_to"].get(r["name"])),
            times(record["cpu_ratio_to"].get(r["name"])),
        )
    return table


def _legend(record: dict[str, Any]) -> str:
    c = record["config"]
    return (
        f"{c['rounds']} × {c['seconds']:g} s of synthetic data, interleaved; {processor(record['machine'])}\n"
        "of peak: the model's operations by the matmul's; of cores: share of their time;\n"
        "by: rsbdali by it, median of the rounds' own ratios, by images/s and CPU-µs"
    )


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


def times(ratio: float | None) -> str:
    """A ratio with its sign, nothing for none."""
    return "" if ratio is None else f"{ratio:.2f} ×"
