"""The report of bench-loader on a terminal."""

from rich import box
from rich.console import Console
from rich.table import Table

from rsbdali.bench.report.figures import BenchReport, LoaderFigures, Stage
from rsbdali.bench.report.presence import processor
from rsbdali.bench.report.terminal_step import figure, times
from rsbdali.errors import counted


def print_report(console: Console, report: BenchReport) -> None:
    """Tables of the loaders and the stages, then the verdict."""
    console.print(_loaders(report))
    console.print(_legend(report), style="dim", markup=False)
    for figures in report.results:
        if figures.note:
            console.print(f"{figures.name}: {figures.note}", style="dim", markup=False)
    for name, why in report.skipped.items():
        console.print(f"{name} did not take part: {why}", markup=False)
    if "across_ranks" in report.ratio_to:
        local = report.ratio_to["across_ranks"]
        by_cpu = times(report.cpu_ratio_to.get("across_ranks"))
        more = f", {by_cpu} by CPU-µs" if by_cpu else ""
        console.print(f"decode once (aug_repeats_mode=decode_once): {local:.2f} × across_ranks{more}", markup=False)
    if report.stages:
        console.print(_stages(report.stages))
    if report.model:
        m = report.model
        console.print(
            f"{m.name}, training step alone: {figure(m.median)} images/s ({figure(m.min)} to {figure(m.max)}), "
            f"batch {m.batch_size}, {m.dtype}",
            markup=False,
        )
    if report.warning:
        console.print(report.warning, style="yellow", markup=False)
    console.print(report.verdict, style="bold", markup=False)


def _loaders(report: BenchReport) -> Table:
    c = report.config
    size = " x ".join(str(side) for side in c["train_size"])
    table = Table(
        title=f"{c['recipe']}, {size} px, batch {c['batch_size']}, {counted(c['workers'], 'worker')}, {c['device']}",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("loader", overflow="fold")
    ratios = ["by\nim/s", "by\nCPU-µs"] if report.ratio_to.keys() - {"across_ranks"} else []
    for heading in ("images/s", "min – max", "CPU-µs", "of\ncores", "load", "wait\nms", "MiB", *ratios):
        table.add_column(heading, justify="right", no_wrap=True)
    for figures in report.results:
        table.add_row(*_row(figures, report)[: len(table.columns)])
    return table


def _legend(report: BenchReport) -> str:
    c = report.config
    rounds = counted(c["rounds"], "round")
    tiled = f" × {c['times_tiled']}" if c["times_tiled"] > 1 else ""
    return (
        f"{rounds} of {c['seconds']:g} s, interleaved; {counted(c['images'], 'image')}{tiled}, page cache warm\n"
        f"{processor(report.machine)}\n"
        "CPU-µs: an image, all threads; of cores: share of their time; MiB: host memory;\n"
        "by: rsbdali by it, median of the rounds' own ratios"
    )


def _row(figures: LoaderFigures, report: BenchReport) -> list[str]:
    rate, present = figures.images_per_s, figures.presence
    return [
        figures.name,
        f"{rate.median:,.0f}",
        f"{rate.min:,.0f} – {rate.max:,.0f}",
        f"{figures.cpu_us_per_image:,.0f}",
        f"{present.cpu_share:.0%}",
        f"{present.load:.1f}",
        figure(figures.wait_ms.median),
        f"{figures.memory_mib:,.0f}",
        times(report.ratio_to.get(figures.name)),
        times(report.cpu_ratio_to.get(figures.name)),
    ]


def _stages(stages: tuple[Stage, ...]) -> Table:
    on_gpu = stages[0].gpu_us is not None
    table = Table(title="where an image's time goes")
    table.add_column("stage")
    for heading in ("CPU-µs", "summed", "images/s up to here", *(["GPU-µs"] if on_gpu else [])):
        table.add_column(heading, justify="right")
    for s in stages:
        own = "below the noise" if s.below_noise else f"{s.cpu_us:,.0f}"
        cells = [s.name, own, f"{s.cumulative_cpu_us:,.0f}", f"{s.images_per_s:,.0f}"]
        table.add_row(*cells, *([gpu_cost(s.gpu_us)] if s.gpu_us is not None else []))
    return table


def gpu_cost(us: float) -> str:
    """A stage's GPU time, which is the difference of two measurements."""
    return "below the noise" if us < 0 else f"{us:,.1f}"
