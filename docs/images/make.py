"""Make the README's pictures from the demo: `python docs/images/make.py RUN`, after `rsbdali train a3 --demo`.

preview.png is what `rsbdali preview` draws, at half its size and in 128 colors; report.svg holds four charts of the page
that `rsbdali report` writes, in the page's light colors.
"""

import re
import sys
from pathlib import Path

from PIL import Image

from rsbdali.recipe import Recipe
from rsbdali.runs.folder import read_args
from rsbdali.runs.report.charts import HEIGHT, WIDTH
from rsbdali.runs.report.page import report
from rsbdali.runs.report.reading import read_runs
from rsbdali.tools.preview import preview

HERE = Path(__file__).parent
SHOWN = ("Top-1", "Evaluation loss", "Training loss", "Learning rate")
COLORS = {"ink": "#23262a", "faint": "#646b73", "line": "#e4e1da", "r0": "#0072b2"}
MARGIN, TITLE = 10, 26


def draw_preview(data: str, out: Path) -> None:
    """A3 on the demo's drawings."""
    recipe = Recipe.load("a3", {"img_size": 128, "test_img_size": 160})
    preview(recipe, Path(data), out, images=3, draws=4)
    with Image.open(out) as image:
        small = image.convert("RGB").resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    small.quantize(128).save(out, optimize=True)


def draw_report(run: Path, out: Path) -> None:
    """Two by two charts, each with its title."""
    page = report(read_runs([run]))
    charts = dict(re.findall(r"<figure><figcaption>([^<]*).*?</figcaption>(<svg .*?</svg>)", page, re.S))
    parts = []
    for k, title in enumerate(SHOWN):
        x, y = MARGIN + k % 2 * (WIDTH + MARGIN), MARGIN + k // 2 * (HEIGHT + TITLE + MARGIN)
        chart = charts[title].replace("<svg ", f'<svg x="{x}" y="{y + TITLE}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        parts.append(f'<text x="{x + MARGIN}" y="{y + 18}" font-weight="600">{title}</text>{chart}')
    width, height = 2 * WIDTH + 3 * MARGIN, 2 * (HEIGHT + TITLE + MARGIN) + MARGIN
    style = "text{font:13px sans-serif;fill:var(--ink)}.faint{fill:var(--faint);font-size:12px}"
    body = f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}'
    for name, color in COLORS.items():
        body = body.replace(f"var(--{name})", color)
    body = re.sub(r"class=(\w+)", r'class="\1"', body)
    out.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{body}</svg>\n')


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    draw_preview(read_args(folder)[0]["data"], HERE / "preview.png")
    draw_report(folder, HERE / "report.svg")
