"""Pieces of the reports for people: one file each, no script, nothing loaded from elsewhere."""

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 1.5rem auto; padding: 0 1rem; color: #1a1a1a;
  background: #fff }
h1 { font-size: 1.6rem; line-height: 1.25 } h2 { margin: 2.5rem 0 .5rem; font-size: 1.25rem }
h3 { margin: 1.5rem 0 .25rem; font-size: 1.05rem }
.wide { overflow-x: auto; margin: .75rem 0 }
table { border-collapse: collapse; font-size: .92rem } th, td { border-bottom: 1px solid #ddd; padding: .3rem .7rem }
th { text-align: left; vertical-align: bottom } td { vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
tr.own td { background: #eef5fb } figure { margin: 1rem 0 } figcaption { color: #555; font-size: .92rem }
code { background: #f3f3f3; padding: .1rem .3rem; overflow-wrap: anywhere }
@media (max-width: 40rem) { th, td { padding: .3rem .45rem } body { padding: 0 .75rem } }
.failed { color: #b00020 } .passed { color: #06752f } .note { color: #555; font-size: .92rem }
ul { padding-left: 1.2rem } summary { cursor: pointer }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page; empty parts are left out."""
    body = "\n".join(part for part in parts if part)
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"{body}\n</body></html>\n"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, words: int = 1, own: Iterable[int] = ()) -> str:
    """A table that scrolls by itself where the screen is narrow.

    Args:
        columns: their heads.
        rows: cells, escaped here.
        words: how many columns, from the left, are text; the others are numbers.
        own: numbers of the rows that are set off.
    """
    marked = set(own)
    head = "".join(f"<th{_kind(place, words)}>{escape(column)}</th>" for place, column in enumerate(columns))
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(f"<td{_kind(place, words)}>{escape(str(cell))}</td>" for place, cell in enumerate(row))
        lines.append(f"<tr{' class=own' if number in marked else ''}>{cells}</tr>")
    return f"<div class=wide><table><tr>{head}</tr>\n{chr(10).join(lines)}</table></div>" if lines else ""


def figure(svg: str, caption: str) -> str:
    """A plot with what it shows."""
    return f"<figure><figcaption>{escape(caption)}</figcaption><div class=wide>{svg}</div></figure>"


def paragraph(text: str, kind: str = "") -> str:
    """Text of a class of the style, escaped."""
    return f"<p{f' class={kind}' if kind else ''}>{escape(text)}</p>" if text else ""


def items(texts: Iterable[str]) -> str:
    """A list, escaped."""
    lines = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{lines}</ul>" if lines else ""


def section(title: str, *parts: str) -> str:
    """A heading with what belongs to it; nothing where nothing does."""
    body = "\n".join(part for part in parts if part)
    return f"<h2>{escape(title)}</h2>\n{body}" if body else ""


def folded(summary: str, body: str) -> str:
    """What is shown on a click."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>" if body else ""


def _kind(place: int, words: int) -> str:
    return "" if place < words else " class=number"
