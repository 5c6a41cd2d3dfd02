"""The report of bench-loader on a terminal."""

from rich.console import Console
from rich.table import Table

from rsbdali.bench.report.figures import BenchReport, LoaderFigures, Stage


def print_report(console: Console, report: BenchReport) -> None:
    """Tables of the loaders and the stages, then the verdict."""
    console.print(_loaders(report))
    for name, why in report.skipped.items():
        console.print(f"{name} did not take part: {why}", markup=False)
    if "spread" in report.ratio_to:
        local = report.ratio_to["spread"]
        console.print(f"decode once (aug_repeats_mode=local): {local:.2f} × spread", markup=False)
    if report.stages:
        console.print(_stages(report.stages))
    if report.model:
        m = report.model
        console.print(
            f"{m.name}, training step alone: {m.median:,.0f} images/s ({m.min:,.0f} to {m.max:,.0f}), "
            f"batch {m.batch_size}, {m.dtype}",
            markup=False,
        )
    console.print(report.verdict, style="bold", markup=False)


def _loaders(report: BenchReport) -> Table:
    c = report.config
    size = " x ".join(str(side) for side in c["train_size"])
    rounds = f"{c['rounds']} round" + ("s" if c["rounds"] != 1 else "")
    tiled = f" × {c['times_tiled']}" if c["times_tiled"] > 1 else ""
    by_it = any(figures.name in report.ratio_to for figures in report.results)
    table = Table(
        title=f"{c['recipe']}, {size} px, batch {c['batch_size']}, {c['workers']} workers, {c['device']}",
        caption=f"{rounds} of {c['seconds']:g} s, interleaved; {c['images']:,} images{tiled}, page cache warm\n"
        "CPU-µs: of all threads, an image; wait: ms a batch; MiB: host memory"
        + ("\nrsbdali by it: median of the rounds' own ratios" if by_it else ""),
    )
    table.add_column("loader")
    for heading in ("images/s", "min – max", "CPU-µs", "wait", "MiB", *(["rsbdali by it"] if by_it else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for figures in report.results:
        table.add_row(*_row(figures, report.ratio_to)[: len(table.columns)])
    return table


def _row(figures: LoaderFigures, ratio_to: dict[str, float]) -> list[str]:
    rate, ratio = figures.images_per_s, ratio_to.get(figures.name)
    return [
        figures.name,
        f"{rate.median:,.0f}",
        f"{rate.min:,.0f} – {rate.max:,.0f}",
        f"{figures.cpu_us_per_image:,.0f}",
        f"{figures.wait_ms.median:,.1f}",
        f"{figures.memory_mib:,.0f}",
        "" if ratio is None else f"{ratio:.2f} ×",
    ]


def _stages(stages: tuple[Stage, ...]) -> Table:
    on_gpu = stages[0].gpu_us is not None
    table = Table(title="where an image's time goes")
    table.add_column("stage")
    for heading in ("CPU-µs", "summed", "images/s up to here", *(["GPU-µs"] if on_gpu else [])):
        table.add_column(heading, justify="right")
    for s in stages:
        cells = [s.name, f"{s.cpu_us:,.0f}", f"{s.cumulative_cpu_us:,.0f}", f"{s.images_per_s:,.0f}"]
        table.add_row(*cells, *([f"{s.gpu_us:,.1f}"] if s.gpu_us is not None else []))
    return table
