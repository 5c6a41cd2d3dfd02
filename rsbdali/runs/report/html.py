"""The shell of our HTML pages: one self-contained file, light and dark, wide and narrow, without scripts."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

STYLE = """
:root { --paper: #fbfaf7; --card: #fff; --ink: #23262a; --faint: #646b73; --line: #e4e1da; --good: #e8f2ee;
        --ours: #2a6f6b; color-scheme: light dark }
@media (prefers-color-scheme: dark) { :root { --paper: #191b1d; --card: #212427; --ink: #e9e7e2; --faint: #a3aab1;
        --line: #383c41; --good: #20312d; --ours: #4fa59f } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px }
h1 { font-size: 26px; margin: 0 0 4px; letter-spacing: -.01em } h2 { font-size: 17px; margin: 0 0 2px }
.sub { color: var(--faint); margin: 0 0 16px; overflow-wrap: anywhere } .note { color: var(--faint); font-size: 13px;
margin: 8px 0 0; overflow-wrap: anywhere }
.verdict { background: var(--good); border-left: 4px solid var(--ours); border-radius: 4px; padding: 14px 18px;
           font-size: 18px; margin: 20px 0 28px; overflow-wrap: anywhere }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 18px 22px;
          margin: 0 0 20px }
svg { display: block; width: 100%; height: auto; overflow: visible } svg text { fill: var(--ink); font-size: 13px }
svg .faint { fill: var(--faint); font-size: 12px }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line); vertical-align: top }
th:first-child, td:first-child { text-align: left; padding-left: 0 } th:last-child, td:last-child { padding-right: 0 }
th { color: var(--faint); font-weight: 500; font-size: 13px } tr:last-child td { border-bottom: 0 }
.facts th, .facts td { text-align: left } .facts td:first-child { color: var(--faint); white-space: nowrap }
code { font: 13px ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere }
@media (max-width: 640px) { svg text { font-size: 17px } svg .faint { font-size: 15.5px }
       main { padding: 24px 12px 40px } section { padding: 14px 14px } h1 { font-size: 22px } }
"""


def page(title: str, subtitle: str, body: str, style: str = "") -> str:
    """A whole page.

    Args:
        title: plain text.
        subtitle: plain text.
        body: HTML, its texts escaped.
        style: CSS of the page's own, after STYLE.
    """
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body><main>\n"
        f"<h1>{escape(title)}</h1><p class=sub>{escape(subtitle)}</p>\n{body}\n</main></body></html>\n"
    )
    return text.encode("utf-8", "backslashreplace").decode()  # names in it may be no text


def section(heading: str, subtitle: str, body: str) -> str:
    """A card. Heading and subtitle are plain text, the body is HTML."""
    sub = f"<p class=sub>{escape(subtitle)}</p>" if subtitle else ""
    return f"<section><h2>{escape(heading)}</h2>{sub}{body}</section>"


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    kind: str = "",
    labels: Mapping[str, str] | None = None,
) -> str:
    """A table that scrolls where it is too wide.

    Args:
        head: plain text.
        rows: plain text.
        kind: CSS class.
        labels: HTML put before the first cell of a row, by that cell's text.
    """
    heads = "".join(f"<th>{escape(text)}" for text in head)
    lines = "".join(
        "<tr>"
        + "".join(f"<td>{(labels or {}).get(text, '') if at == 0 else ''}{escape(text)}" for at, text in enumerate(row))
        for row in rows
    )
    return f'<div class=scroll tabindex=0><table class="{kind}"><thead><tr>{heads}<tbody>{lines}</table></div>'
