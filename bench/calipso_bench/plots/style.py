"""How the plots look, and how a figure becomes SVG that stands inside a page."""

import contextlib
import dataclasses
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from html import escape
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from calipso_bench.contenders import is_bundle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind can tell apart: the same contender has the same in every report.
_KNOWN = {
    "bundle/ort": ("#0072b2", "o"),
    "bundle/openvino": ("#009e73", "p"),
    "bundle/ort-cuda": ("#56b4e9", "h"),
    "eager": ("#333333", "s"),
    "compile": ("#e69f00", "^"),
    "ort-plain": ("#d55e00", "D"),
    "openvino": ("#cc79a7", "v"),
}
_OTHERS = (("#7f6bb3", "P"), ("#b8a100", "X"), ("#999999", "*"), ("#8c564b", "<"))
_PANEL_INCHES = (3.7, 3.1)
_LEGEND_INCHES = 0.55
# Width of a contender in the legend.
_LEGEND_ENTRY_INCHES = 1.4
# Of the confusion picture: at least this, and so much per name of a class and for the names themselves.
_LEAST_SQUARE_INCHES = 6.0
_NAME_INCHES = 0.17
_AROUND_SQUARE_INCHES = 2.2
# The checker knows the names of one version of matplotlib only.
_SETTINGS: dict[Any, Any] = {
    # Text stays text: it can be read aloud, searched and copied.
    "svg.fonttype": "none",
    # The same figure is the same file.
    "svg.hashsalt": "calipso",
    # Names of classes are data: a dollar sign in one is no formula.
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
_ID = re.compile(r'(\bid="|xlink:href="#|url\(#)')
_PIXELS_PER_INCH = 96
# Smaller than this a plot is scrolled, not shrunk.
_LEAST_SCALE = 0.7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """A contender's colour, marker and line."""

    color: str
    marker: str
    linewidth: float
    linestyle: Literal["-", "--"]


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Each contender looks the same in every figure of a page."""
    others = cycle(_OTHERS)
    found = {}
    for name in sorted(names):
        own = is_bundle(name)
        color, marker = _KNOWN.get(name) or next(others)
        found[name] = Look(color=color, marker=marker, linewidth=2.4 if own else 1.4, linestyle="-" if own else "--")
    return found


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw inside of this: matplotlib's settings come back afterwards."""
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # The reader's own font may have what matplotlib's lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def panels(columns: int, *, rows: int = 1, height: float = _PANEL_INCHES[1]) -> "tuple[Figure, list[Axes]]":
    """A figure with panels in a grid, and room for a legend above them."""
    figure = Figure(figsize=(_PANEL_INCHES[0] * max(columns, 2), height * rows + _LEGEND_INCHES), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def square(names: int) -> "tuple[Figure, Axes]":
    """A figure with one square panel, large enough for so many names on both axes."""
    side = max(_LEAST_SQUARE_INCHES, _NAME_INCHES * names + _AROUND_SQUARE_INCHES)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots()


def legend(figure: Figure, looks_: dict[str, Look], names: Sequence[str], *, line: bool = True) -> None:
    """One legend for all panels, above them."""
    handles = [
        Line2D(
            [],
            [],
            color=looks_[name].color,
            marker=looks_[name].marker,
            linestyle=looks_[name].linestyle if line else "",
            linewidth=looks_[name].linewidth,
            label=name,
        )
        for name in names
    ]
    rows = math.ceil(len(handles) * _LEGEND_ENTRY_INCHES / figure.get_figwidth())
    figure.legend(handles=handles, loc="outside upper center", ncols=math.ceil(len(handles) / rows))


def svg(figure: Figure, name: str, about: str) -> str:
    """The figure as an `<svg>` element: no header, no external resource, no id that another figure has.

    Args:
        figure: it is drawn here.
        name: a prefix for the ids, different for each figure of a page.
        about: what is to be seen, for readers who do not see it.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = stream.getvalue()
    element = _ID.sub(rf"\g<1>{name}-", text[text.index("<svg") :])
    # The text with dollar signs etc. stays; the size is left to the page, the proportions are kept.
    width = figure.get_figwidth() * _PIXELS_PER_INCH
    head, rest = element.split(">", maxsplit=1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    style = f"width:100%;min-width:{width * _LEAST_SCALE:.0f}px;max-width:{width:.0f}px"
    return f'{head} role="img" aria-label="{escape(about)}" style="{style}">{rest}'
