"""Make the docs' pictures from the demo: `python docs/images/make.py RUN`, after `rsbdali train a3 --demo`.

preview.png is what `rsbdali preview` draws, at half its size and in 128 colors; augmentations.png is a row of it for
each of some augmentations; report.svg holds four charts of the page that `rsbdali report` writes, in the page's light
colors.
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
PLAIN = {"img_size": 128, "test_img_size": 128, "scale": [0.6, 1.0], "aa": "none", "mixup": 0, "cutmix": 0}
AUGMENTATIONS = {
    "original": {"aa": "original-mstd0.5"},
    "3a": {"aa": "3a"},
    "trivial": {"aa": "trivial"},
    "jitter, hue, gray": {"color_jitter": [0.4, 0.4, 0.4, 0.2], "grayscale_prob": 0.25},
    "blur, vflip": {"gaussian_blur_prob": 0.7, "vflip": 0.5},
    "erasing, pixel x 3": {"reprob": 1.0, "recount": 3},
}


def draw_preview(data: str, out: Path) -> None:
    """A3 on the demo's drawings."""
    recipe = Recipe.load("a3", {"img_size": 128, "test_img_size": 160})
    preview(recipe, Path(data), out, images=3, draws=4)
    with Image.open(out) as image:
        small = image.convert("RGB").resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    small.quantize(128).save(out, optimize=True)


def draw_augmentations(data: str, out: Path) -> None:
    """A picture of `preview` for each, one below the other; its name is the recipe's."""
    drawn = []
    for name, values in AUGMENTATIONS.items():
        recipe = Recipe.load("a3", {**PLAIN, **values, "name": re.sub(r"\W+", "-", name)})
        preview(recipe, Path(data), out, images=1, draws=4)
        with Image.open(out) as image:
            drawn.append(image.convert("RGB").resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS))
    page = Image.new("RGB", (max(image.width for image in drawn), sum(image.height for image in drawn)))
    for k, image in enumerate(drawn):
        page.paste(image, (0, sum(above.height for above in drawn[:k])))
    page.quantize(128).save(out, optimize=True)


def draw_report(run: Path, out: Path) -> None:
    """Two by two charts, each with its title."""
    page = report(read_runs([run]))
    charts = dict(re.findall(r"<figure><figcaption>([^<]*?) ?(?:<span>.*?)?</figcaption>(<svg .*?</svg>)", page, re.S))
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
    draw_augmentations(read_args(folder)[0]["data"], HERE / "augmentations.png")
    draw_report(folder, HERE / "report.svg")
