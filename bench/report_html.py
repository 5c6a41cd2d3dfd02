"""The report of bench-loader as one HTML page: inline style, inline SVG, nothing fetched from anywhere."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

WIDTH, LABEL, BAR, STEP = 860, 150, 26, 44  # of a chart, in SVG units: whole, names' column, bar height, bar to bar
OURS, OTHER, MODEL = "var(--ours)", "var(--other)", "var(--model)"
COLUMNS = ("loader", "images/s", "min", "max", "CPU-µs/image", "ms/batch", "longest", "MiB")

STYLE = """
:root { --paper: #fbfaf7; --card: #fff; --ink: #23262a; --faint: #6d747c; --line: #e4e1da;
        --ours: #2a6f6b; --other: #b9bfc4; --model: #c9822b; --good: #e8f2ee; }
@media (prefers-color-scheme: dark) { :root { --paper: #191b1d; --card: #212427; --ink: #e9e7e2; --faint: #9aa1a8;
        --line: #34383c; --ours: #4fa59f; --other: #59616a; --model: #d99a4a; --good: #20312d; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
main { max-width: 960px; margin: 0 auto; padding: 40px 24px 64px }
h1 { font-size: 26px; margin: 0 0 4px; letter-spacing: -.01em } h2 { font-size: 17px; margin: 0 0 2px }
.sub { color: var(--faint); margin: 0 0 20px } .note { color: var(--faint); font-size: 13px; margin: 8px 0 0 }
.verdict { background: var(--good); border-left: 4px solid var(--ours); border-radius: 4px; padding: 14px 18px;
           font-size: 18px; margin: 20px 0 28px }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 18px 22px;
          margin: 0 0 20px }
svg { display: block; width: 100%; height: auto } svg text { fill: var(--ink); font-size: 14px }
svg .faint { fill: var(--faint); font-size: 12.5px } svg .strong { font-weight: 600 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line); vertical-align: top }
th:first-child, td:first-child { text-align: left } th { color: var(--faint); font-weight: 500; font-size: 13px }
tr:last-child td { border-bottom: 0 } .facts td { text-align: left } .facts td:first-child { color: var(--faint);
white-space: nowrap } code { font: 13px ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere }
"""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar: its name, value, what is written behind it, its colour; low and high draw a whisker."""

    name: str
    value: float
    text: str
    colour: str
    low: float | None = None
    high: float | None = None
    start: float = 0.0


def write_html(path: Path, report: dict[str, Any]) -> None:
    """Write the page of a report (`figures.to_json`), whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(page(report), encoding="utf-8")
    os.replace(unfinished, path)


def page(report: dict[str, Any]) -> str:
    """The page as text."""
    c = report["config"]
    size = " × ".join(str(side) for side in c["train_size"])
    subtitle = f"recipe {c['recipe']} at {size} px, batch {c['batch_size']}, {c['workers']} workers, {c['device']}"
    parts = [_rates(report), _costs(report), _stages(report), _table(report), _facts(report)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>bench-loader: {escape(str(c['recipe']))}</title><style>{STYLE}</style></head>\n<body><main>\n"
        f"<h1>How fast the data comes</h1><p class=sub>{escape(subtitle)}</p>\n"
        f"<p class=verdict>{escape(_sentence(report['verdict']))}</p>\n" + "\n".join(p for p in parts if p)
        + "\n</main></body></html>\n"
    )  # fmt: skip


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
        f'<rect x="{x:.1f}" y="{y}" width="{max(end - x, 1.5):.1f}" height="{BAR}" rx="3" fill="{bar.colour}"/>',
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
        bars.append(Bar(name="decode alone", value=ceiling["images_per_s"], text=text, colour=OTHER))
    if model := report["model"]:
        text = f"{model['median']:,.0f} takes, batch {model['batch_size']}, {model['dtype']}"
        bars.append(
            Bar(name=model["name"], value=model["median"], text=text, colour=MODEL, low=model["min"], high=model["max"])
        )
    heading = "<h2>Images a second</h2><p class=sub>medians; the line: least to most; ratios: round by round</p>"
    return _section(heading + chart(bars, "images a second") + _footnotes(report))


def _rate_bar(result: dict[str, Any], ratio: float | None) -> Bar:
    rate = result["images_per_s"]
    text = f"{rate['median']:,.0f} images/s" if ratio is None else f"{rate['median']:,.0f} rsbdali is {ratio:.2f} ×"
    colour = OURS if result["name"].startswith("rsbdali") else OTHER
    return Bar(
        name=result["name"], value=rate["median"], text=text, colour=colour, low=rate["min"], high=rate["max"]
    )  # fmt: skip


def _footnotes(report: dict[str, Any]) -> str:
    notes = [f"{r['name']}: {r['note']}" for r in report["results"] if r["note"]]
    notes += [f"{name} did not take part: {why}" for name, why in report["skipped"].items()]
    if "spread" in report["ratio_to"]:
        notes.append(f"decoding once (local) gives {report['ratio_to']['spread']:.2f} × spread")
    return "".join(f"<p class=note>{escape(note)}</p>" for note in notes)


def _costs(report: dict[str, Any]) -> str:
    bars = [
        Bar(name=r["name"], value=r["cpu_us_per_image"], text=f"{r['cpu_us_per_image']:,.0f} µs",
            colour=OURS if r["name"].startswith("rsbdali") else OTHER)
        for r in report["results"]
    ]  # fmt: skip
    heading = "<h2>CPU time an image</h2><p class=sub>all threads and processes together; less is better</p>"
    return _section(heading + chart(bars, "CPU microseconds an image"))


def _stages(report: dict[str, Any]) -> str:
    if not report["stages"]:
        return ""
    bars = [
        Bar(name=s["name"], value=s["cpu_us"], start=max(0.0, s["cumulative_cpu_us"] - max(s["cpu_us"], 0.0)),
            text=f"{s['cpu_us']:,.0f} µs" + (f", GPU {s['gpu_us']:,.1f} µs" if s["gpu_us"] is not None else ""),
            colour=OURS)
        for s in report["stages"]
    ]  # fmt: skip
    heading = "<h2>Where an image's time goes</h2><p class=sub>CPU microseconds of each stage, one upon the other</p>"
    return _section(heading + chart(bars, "CPU microseconds by stage"))


def _table(report: dict[str, Any]) -> str:
    head = "".join(f"<th>{name}" for name in COLUMNS)
    rows = []
    for r in report["results"]:
        rate, wait = r["images_per_s"], r["wait_ms_per_batch"]
        cells = [
            r["name"], f"{rate['median']:,.0f}", f"{rate['min']:,.0f}", f"{rate['max']:,.0f}",
            f"{r['cpu_us_per_image']:,.0f}", f"{wait['median']:,.1f}", f"{wait['max']:,.1f}", f"{r['memory_mib']:,.0f}",
        ]  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}" for cell in cells))
    note = "<p class=note>ms/batch: what a consumer that does nothing waits for a batch. MiB: host memory (PSS).</p>"
    return _section(f"<h2>Figures</h2><table><tr>{head}{''.join(rows)}</table>{note}")


def _facts(report: dict[str, Any]) -> str:
    m, c = report["machine"], report["config"]
    gpus = ", ".join(f"{g['name']} ({g['memory_gib']} GiB)" for g in m["gpu"]) or "none"
    tiled = f", each {c['times_tiled']} times an epoch" if c["times_tiled"] > 1 else ""
    facts = {
        "date": m["date"],
        "processor": f"{m['cpu']}, {m['cores_usable']} of {m['cores']} cores, {m['ram_gib']} GiB",
        "GPU": gpus + (f", driver {m['driver']}" if m["driver"] else ""),
        "versions": ", ".join(f"{name} {version}" for name, version in m["versions"].items()),
        "commit": m["commit"] or "not in a repository",
        "rounds": f"{c['rounds']} of {c['seconds']:g} s, interleaved, the other loaders frozen",
        "images": f"{c['images']:,}{tiled}, page cache {c['page_cache']}",
    }
    rows = "".join(f"<tr><td>{escape(k)}<td>{escape(str(v))}" for k, v in facts.items())
    command = f"<tr><td>command<td><code>{escape(m['command'])}</code>"
    return _section(f"<h2>Machine</h2><table class=facts>{rows}{command}</table>")


def _section(body: str) -> str:
    return f"<section>{body}</section>"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] if not text.startswith("rsbdali") else text
