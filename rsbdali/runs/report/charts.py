"""Line charts as inline SVG: labeled axes with units, round ticks, one color and one dash a run.

Colors are distinct to color-blind eyes (after Okabe and Ito), dashes to all; tooltips are SVG titles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 270  # of a chart, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 45  # margins: tick labels, last tick, half a label, ticks and axis name
COLOURS, DASHES = 6, ("", "7 4", "2 3", "10 3 2 3")
MARKED = 40  # a line of up to so many points shows them
FINEST = 400  # points of a line; more are averaged, neighbors together

STYLE = """
:root { --r0: #0072b2; --r1: #c44e00; --r2: #00805f; --r3: #a04a93; --r4: #806000; --r5: #4a4f55 }
@media (prefers-color-scheme: dark) { :root { --r0: #56b4e9; --r1: #f28a4b; --r2: #35c69c; --r3: #d993c6;
        --r4: #e0bf3c; --r5: #c9cdd2 } }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); gap: 22px 28px }
figure { margin: 0; min-width: 0 } figcaption { font-weight: 600; margin: 0 0 4px }
figcaption span { color: var(--faint); font-weight: 400 }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 8px 0 10px; margin: 0 0 8px; position: sticky; top: 0;
          background: var(--card); border-bottom: 1px solid var(--line) }
.legend span { overflow-wrap: anywhere } .key { display: inline-block; width: 34px; height: 10px; margin-right: 8px;
          vertical-align: middle }
"""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One run's curve: `points` of (x, y) in rising x; `style` is the run's number on the page."""

    name: str
    style: int
    points: Sequence[tuple[float, float]]


def chart(
    title: str, unit: str, lines: Sequence[Line], *, from_zero: bool = False, marked: bool = True, note: str = ""
) -> str:
    """A figure: curves over epochs.

    Args:
        title: of the figure.
        unit: of y; empty where it has none.
        lines: those without points are named below the chart.
        from_zero: let y begin at 0.
        marked: show the points of short lines.
        note: what these figures are, beside the title.
    """
    said = "".join(f" <span>{escape(text)}</span>" for text in (unit, note) if text)
    drawn = [line for line in lines if line.points]
    missing = [line.name for line in lines if not line.points]
    if not drawn:
        picture = "<p class=note>not recorded by any run</p>"
    else:
        picture = _svg(title, unit, drawn, from_zero=from_zero, marked=marked)
    tail = f"<p class=note>not recorded: {escape(', '.join(missing))}</p>" if missing and drawn else ""
    return f"<figure><figcaption>{escape(title)}{said}</figcaption>{picture}{tail}</figure>"


def key(style: int) -> str:
    """A run's mark in a legend, as SVG."""
    return f'<svg class=key viewBox="0 0 34 10" aria-hidden="true"><path d="M0 5H34" {_stroke(style)}/></svg>'


def legend(names: Sequence[str]) -> str:
    """All runs with their marks."""
    return f"<div class=legend>{''.join(f'<span>{key(k)}{escape(name)}</span>' for k, name in enumerate(names))}</div>"


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) from `low` or below to `high` or above."""
    span = high - low
    if span <= 0:
        span = abs(high) * 0.1 or 1.0  # a constant is drawn in the middle
        low, high = low - span / 2, high + span / 2
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most FINEST points: means of neighbors."""
    size = -(-len(points) // FINEST)
    groups = [points[k : k + size] for k in range(0, len(points), size)] if size else []
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _svg(title: str, unit: str, lines: Sequence[Line], *, from_zero: bool, marked: bool) -> str:
    ys = [y for line in lines for _, y in line.points]
    y_ticks = ticks(min(0.0, *ys) if from_zero else min(ys), max(ys), 5)
    x_max = max(1.0, *(x for line in lines for x, _ in line.points))
    # whole epochs only
    x_ticks = [x for x in ticks(0, x_max, 8) if x <= x_max + 1e-9 and x == round(x)]
    scale = _Scale(x_max, y_ticks[0], y_ticks[-1])
    parts = [_grid(scale, x_ticks, y_ticks), *(_curve(scale, line, unit, marked) for line in lines)]
    label = f"{title}{f' in {unit}' if unit else ''} over epochs"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


@dataclass(frozen=True)
class _Scale:
    x_max: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.x_max

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.high - value) / (self.high - self.low)


def _grid(scale: _Scale, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    step = y_ticks[1] - y_ticks[0]
    parts = []
    for value in y_ticks:
        y = scale.y(value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="var(--line)"/>')
        text = tick_text(value, step)
        parts.append(f'<text class=faint x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    bottom = HEIGHT - BOTTOM
    for value in x_ticks:
        x = scale.x(value)
        parts.append(f'<path d="M{x:.1f} {bottom}v5" stroke="var(--faint)"/>')
        parts.append(f'<text class=faint x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<path d="M{LEFT} {bottom}H{WIDTH - RIGHT}" stroke="var(--faint)"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class=faint x="{middle:.0f}" y="{HEIGHT - 5}" text-anchor="middle">epochs done</text>')
    return "".join(parts)


def tick_text(value: float, step: float) -> str:
    """A tick's label with as many digits as its step needs."""
    if abs(value) < step / 1e6:
        return "0"
    if step < 1e-4 or abs(value) >= 1e7:
        return f"{value:.3g}"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{digits}f}"


def _curve(scale: _Scale, line: Line, unit: str, marked: bool) -> str:
    points = thinned(line.points)
    path = "".join(f"{'L' if k else 'M'}{scale.x(x):.1f} {scale.y(y):.1f}" for k, (x, y) in enumerate(points))
    parts = [f'<path d="{path}" {_stroke(line.style)}/>']
    color = _color(line.style)
    if len(points) == 1 or (marked and len(points) <= MARKED):
        for x, y in points:
            title = escape(f"{line.name}: {y:.4g}{f' {unit}' if unit else ''} at epoch {x:g}")
            parts.append(
                f'<circle cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="2.6" fill="{color}"><title>{title}</title>'
                "</circle>"
            )
    return "".join(parts)


def _stroke(style: int) -> str:
    dash = DASHES[style % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'fill="none" stroke="{_color(style)}" stroke-width="2" stroke-linejoin="round"{dashed}'


def _color(style: int) -> str:
    return f"var(--r{style % COLOURS})"
