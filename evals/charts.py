"""Line charts with bands, as SVG that stands in a page and takes its colours: light or dark, as the reader has it.

Drawn by matplotlib, which is an extra. Not here: what is drawn.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .curves import Figure
from .markup import Html, escaped, h, visible

COLOURS = 7
"""Then they begin again, dotted."""
BANDS = 5
"""Of more lines the bands would hide each other."""
ENLARGED = 1.45
"""Pixels of the page for a point of the drawing."""
_INK, _RULE = "#0a0b0c", "#0a0b0d"


@dataclass(frozen=True, slots=True)
class Line:
    """Values over x with the ends of their intervals, if there are any."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    style: str = "-"
    colour: int | None = None
    """None: one of its own."""

    @classmethod
    def of(
        cls, name: str, curve: Mapping[str, Figure], *, style: str = "-", colour: int | None = None, band: bool = True
    ) -> Line:  # fmt: skip
        """Of figures by k."""
        found = list(curve.values())
        low, high = ([f.low for f in found], [f.high for f in found]) if band else ([], [])
        return cls(name, [float(k) for k in curve], [f.value for f in found], low, high, style, colour)


def chart(
    title: str, lines: Sequence[Line], *, x: str, y: str, percent: bool = True, upto: float | None = None, of: str = ""
) -> Html:
    """``lines`` in one picture, x on a scale of doublings. ``upto``: where the draws end; ``of``: a page has no two charts of one
    title that are of the same. Lines without a point are left out.

    Raises ``ModuleNotFoundError`` that says what to install where there is no matplotlib.
    """
    lines, (figure, axes) = [line for line in lines if line.y], _empty()
    for number, line in enumerate(lines):
        colour = _sentinel(number if line.colour is None else line.colour)
        marker = "." if line.style == "-" and len(line.x) < 24 else None
        style = line.style if number < COLOURS else ":"
        axes.plot(line.x, line.y, style, color=colour, label=visible(line.name).lstrip("_"), marker=marker, linewidth=1.6)
        if line.low and len(lines) <= BANDS:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.13, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    if percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    if upto is not None:
        axes.axvline(upto, color=_RULE, linewidth=1, linestyle=":")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    handles, names = axes.get_legend_handles_labels()
    down = sorted(range(len(lines)), key=lambda i: -lines[i].y[-1])  # as the lines end
    axes.legend([handles[i] for i in down], [names[i] for i in down], frameon=False, fontsize=9, labelcolor=_INK,
                loc="center left", bbox_to_anchor=(1.0, 0.5))  # fmt: skip
    with io.BytesIO() as file:
        with warnings.catch_warnings(action="ignore"):  # a name in letters that matplotlib's own font lacks: the page's has them
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None}, bbox_inches="tight")
        svg = file.getvalue().decode()
    return h("figure", _inline(svg, title, of), h("figcaption", title))


def _empty() -> tuple[Any, Any]:
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError("a report needs matplotlib: pip install 'forethought[report]'") from e
    matplotlib.rcParams.update({
        "svg.fonttype": "none", "svg.hashsalt": "forethought", "text.parse_math": False, "font.sans-serif": ["DejaVu Sans"],
    })  # fmt: skip
    figure = Canvas(figsize=(7.4, 3.9))
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(_RULE)
    axes.tick_params(colors=_INK, labelsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(_INK)
    axes.grid(color=_RULE, linewidth=0.5, alpha=0.5)
    return figure, axes


def _sentinel(number: int) -> str:
    """A colour that nothing else has, in whose place the page's own is put."""
    return f"#0a0c{number % COLOURS:02x}"


def _inline(svg: str, title: str, of: str) -> Html:
    """The drawing for the inside of a page: names of its parts that no other drawing has, and the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    mine, used = hashlib.sha256(visible(f"{title} {of}").encode()).hexdigest()[:8], set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r'\s\bid="([^"]+)"', lambda name: f' id="{mine}-{name[1]}"' if name[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{mine}-", svg)
    svg = re.sub(r'\b(?:d|x|y|transform)="[^"]*"', lambda place: re.sub(r"(\d\.\d\d)\d+", r"\1", place[0]), svg)
    for number in range(COLOURS):
        svg = svg.replace(_sentinel(number), f"var(--c{number})")
    svg = svg.replace(_INK, "var(--ink)").replace(_RULE, "var(--rule)")
    found = re.search(r'<svg[^>]*?viewBox="([\d. -]+)"[^>]*>', svg)
    assert found is not None
    width = round(float(found[1].split()[2]) * ENLARGED)
    opened = f'<svg viewBox="{found[1]}" width="{width}" role="img" aria-label="{escaped(title)}">'
    svg = opened + svg[found.end() :]
    return Html(re.sub(r"\s*\n\s*", "\n", svg))
