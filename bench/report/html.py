"""The report of bench-loader as one HTML page: inline style, inline SVG, nothing fetched from anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rsbdali.bench.report.presence import processor
from rsbdali.errors import counted
from rsbdali.runs.report import html

WIDTH, LABEL, BAR, STEP = 860, 150, 26, 44  # of a chart, in SVG units: whole, names' column, bar height, bar to bar
OURS, OTHER, MODEL = "var(--ours)", "var(--other)", "var(--model)"
COLUMNS = ("loader", "images/s", "min", "max", "CPU-µs/image", "of cores", "load", "ms/batch", "longest", "MiB")

STYLE = """
:root { --other: #b9bfc4; --model: #c9822b } svg .strong { font-weight: 600 }
@media (prefers-color-scheme: dark) { :root { --other: #59616a; --model: #d99a4a } }
"""
"""What these charts add to the style of all pages."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar: its name, value, what is written behind it, its color; low and high draw a whisker."""

    name: str
    value: float
    text: str
    color: str
    low: float | None = None
    high: float | None = None
    start: float = 0.0


def page(report: dict[str, Any]) -> str:
    """The page of a report (`figures.to_json`) as text."""
    c = report["config"]
    size = " × ".join(str(side) for side in c["train_size"])
    subtitle = (
        f"recipe {c['recipe']} at {size} px, batch {c['batch_size']}, {counted(c['workers'], 'worker')}, {c['device']}"
    )
    parts = [_rates(report), _costs(report), _stages(report), _figures(report), _facts(report)]
    verdict = f"<p class=verdict>{escape(_sentence(report['verdict']))}</p>"
    if report["warning"]:
        verdict += f"<p class=note>{escape(_sentence(report['warning']))}</p>"
    return html.page("How fast the data comes", subtitle, "\n".join([verdict, *filter(None, parts)]), STYLE)


def chart(bars: Sequence[Bar], label: str) -> str:
    """Horizontal bars as an SVG element, on one scale from 0."""
    top = max(max(bar.start + bar.value, bar.high or 0.0) for bar in bars) or 1.0
    room = WIDTH - LABEL - 190  # for what is written behind the longest bar
    rows = [_bar(bar, k * STEP + 4, room / top) for k, bar in enumerate(bars)]
    height = len(bars) * STEP
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        f'<line x1="{LABEL}" y1="0" x2="{LABEL}" y2="{height}" stroke="var(--line)"/>{"".join(rows)}</svg>'
    )


def _bar(bar: Bar, y: float, scale: float) -> str:
    middle, x = y + BAR / 2, LABEL + bar.start * scale
    end = x + max(bar.value, 0.0) * scale
    parts = [
        f'<text x="{LABEL - 12}" y="{middle + 5}" text-anchor="end">{escape(bar.name)}</text>',
        f'<rect x="{x:.1f}" y="{y}" width="{max(end - x, 1.5):.1f}" height="{BAR}" rx="3" fill="{bar.color}"/>',
    ]
    if bar.low is not None and bar.high is not None:
        low, high = LABEL + bar.low * scale, LABEL + bar.high * scale
        ends = "".join(f"M{at:.1f} {middle - 5}v10" for at in (low, high))
        parts.append(f'<path d="M{low:.1f} {middle}H{high:.1f}{ends}" stroke="var(--ink)" fill="none" opacity=".55"/>')
        end = max(end, high)
    number, _, rest = bar.text.partition(" ")
    parts.append(
        f'<text x="{end + 10:.1f}" y="{middle + 5}"><tspan class="strong">{escape(number)}</tspan>'
        f'<tspan class="faint" dx="5">{escape(rest)}</tspan></text>'
    )
    return "".join(parts)


def _rates(report: dict[str, Any]) -> str:
    bars = [_rate_bar(r, report["ratio_to"].get(r["name"])) for r in report["results"]]
    ceiling = next((s for s in report["stages"] if s["name"] == "decode"), None)
    if ceiling:
        text = f"{ceiling['images_per_s']:,.0f} the ceiling"
        bars.append(Bar(name="decode alone", value=ceiling["images_per_s"], text=text, color=OTHER))
    if model := report["model"]:
        text = f"{model['median']:,.0f} takes, batch {model['batch_size']}, {model['dtype']}"
        bars.append(
            Bar(name=model["name"], value=model["median"], text=text, color=MODEL, low=model["min"], high=model["max"])
        )
    subtitle = "medians; the line: least to most; ratios: round by round"
    return html.section("Images a second", subtitle, chart(bars, "images a second") + _footnotes(report))


def _rate_bar(result: dict[str, Any], ratio: float | None) -> Bar:
    rate = result["images_per_s"]
    text = _versus(f"{rate['median']:,.0f}", "images/s", ratio)
    color = OURS if result["name"].startswith("rsbdali") else OTHER
    return Bar(name=result["name"], value=rate["median"], text=text, color=color, low=rate["min"], high=rate["max"])


def _versus(value: str, unit: str, ratio: float | None) -> str:
    """A figure with its unit, or for a peer with what ours is by it."""
    return f"{value} {unit}" if ratio is None else f"{value} rsbdali is {ratio:.2f} ×"


def _footnotes(report: dict[str, Any]) -> str:
    notes = [f"{r['name']}: {r['note']}" for r in report["results"] if r["note"]]
    notes += [f"{name} did not take part: {why}" for name, why in report["skipped"].items()]
    if "across_ranks" in report["ratio_to"]:
        by_cpu = report["cpu_ratio_to"].get("across_ranks")
        more = f", {by_cpu:.2f} × by CPU-µs" if by_cpu else ""
        notes.append(f"decoding once (local) gives {report['ratio_to']['across_ranks']:.2f} × across_ranks{more}")
    return "".join(f"<p class=note>{escape(note)}</p>" for note in notes)


def _costs(report: dict[str, Any]) -> str:
    bars = [
        Bar(
            name=r["name"],
            value=r["cpu_us_per_image"],
            text=_versus(f"{r['cpu_us_per_image']:,.0f}", "µs", report["cpu_ratio_to"].get(r["name"])),
            color=OURS if r["name"].startswith("rsbdali") else OTHER,
        )
        for r in report["results"]
    ]
    subtitle = "all threads and processes together; less is better"
    return html.section("CPU time an image", subtitle, chart(bars, "CPU microseconds an image"))


def _stages(report: dict[str, Any]) -> str:
    if not report["stages"]:
        return ""
    bars = [
        Bar(
            name=s["name"],
            value=s["cpu_us"],
            start=max(0.0, s["cumulative_cpu_us"] - max(s["cpu_us"], 0.0)),
            text=_cost(s),
            color=OURS,
        )
        for s in report["stages"]
    ]
    subtitle = "CPU microseconds of each stage, one upon the other"
    return html.section("Where an image's time goes", subtitle, chart(bars, "CPU microseconds by stage"))


def _cost(stage: dict[str, Any]) -> str:
    own = "below the noise" if stage["below_noise"] else f"{stage['cpu_us']:,.0f} µs"
    if stage["gpu_us"] is None:
        return own
    return f"{own}, GPU " + ("below the noise" if stage["gpu_us"] < 0 else f"{stage['gpu_us']:,.1f} µs")


def _figures(report: dict[str, Any]) -> str:
    rows = []
    for r in report["results"]:
        rate, wait = r["images_per_s"], r["wait_ms_per_batch"]
        rows.append(
            [
                r["name"],
                f"{rate['median']:,.0f}",
                f"{rate['min']:,.0f}",
                f"{rate['max']:,.0f}",
                f"{r['cpu_us_per_image']:,.0f}",
                f"{r['cpu_share']:.0%}",
                f"{r['load']:.1f}",
                f"{wait['median']:,.1f}",
                f"{wait['max']:,.1f}",
                f"{r['memory_mib']:,.0f}",
            ]
        )
    note = (
        "<p class=note>of cores: share of their time. ms/batch: what a consumer that does nothing waits for a batch. "
        "MiB: host memory (PSS).</p>"
    )
    return html.section("Figures", "", html.table(COLUMNS, rows) + note)


def _facts(report: dict[str, Any]) -> str:
    m, c = report["machine"], report["config"]
    gpus = ", ".join(f"{g['name']} ({g['memory_gib']} GiB)" for g in m["gpu"]) or "none"
    tiled = f", each {c['times_tiled']} times an epoch" if c["times_tiled"] > 1 else ""
    facts = {
        "date": m["date"],
        "processor": f"{processor(m)}, {m['ram_gib']} GiB",
        "GPU": gpus + (f", driver {m['driver']}" if m["driver"] else ""),
        "versions": ", ".join(f"{name} {version}" for name, version in m["versions"].items()),
        "commit": m["commit"] or "not in a repository",
        "rounds": f"{c['rounds']} of {c['seconds']:g} s, interleaved, the other loaders frozen",
        "images": f"{c['images']:,}{tiled}, page cache {c['page_cache']}",
        "command": m["command"],
    }
    rows = [(name, str(value)) for name, value in facts.items()]
    return html.section("Machine", "", html.table(("", ""), rows, kind="facts"))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] if not text.startswith("rsbdali") else text
