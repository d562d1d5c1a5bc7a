"""Plots as inline SVG that take their colours from the page, so that one picture serves light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import (
    EngFormatter,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
    ScalarFormatter,
)

SERIES = 6
"""Number of distinct series colours; a seventh series starts over with another dash pattern."""
_DASHES = ("-", "--", ":", "-.")
_LONGEST = 28
"""Characters of a label."""
_MARKERS = ("o", "s", "^", "D", "v", "P")
# Stand-ins that matplotlib can draw with and the page replaces by its own colours.
_INK = "#010101"
_GRID = "#020202"
_STAND_IN = tuple(f"#0303{number:02x}" for number in range(SERIES))
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "slipstream",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
    "axes.grid": True,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.axisbelow": True,
}
# A name may hold a dollar sign; matplotlib would set it as a formula.
_PLAIN_TEXT = {"text.parse_math": False}


def scatter(points: Sequence[tuple[str, float, float]], *, x: str, y: str, name: str) -> str:
    """Labelled points.

    Args:
        points: Label, x and y of each.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        name: Unique on the page; describes the picture to those who cannot see it.

    Returns:
        An ``<svg>`` element.
    """

    def draw(axes: Axes) -> None:
        for number, (label, horizontal, vertical) in enumerate(points):
            axes.plot(
                [horizontal],
                [vertical],
                linestyle="none",
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=8,
                color=_STAND_IN[number % SERIES],
                label=_short(label),
            )
        axes.margins(0.15)
        axes.set_xlim(left=0)

    return _svg(draw, x=x, y=y, name=name, legend=len(points))


def lines(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str, name: str) -> str:
    """One line per series; arguments as in :func:`scatter`, each series holding its xs and ys."""

    def draw(axes: Axes) -> None:
        for number, (label, (horizontal, vertical)) in enumerate(series.items()):
            _line(
                axes, number, label, horizontal, vertical, marker="o" if len(horizontal) < 30 else None, markersize=3.5
            )
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))

    return _svg(draw, x=x, y=y, name=name, legend=len(series))


def _line(axes: Axes, number: int, label: str, x: Sequence[float], y: Sequence[float], **marks: Any) -> None:
    """The line of the series of that number."""
    colour, dashes = _STAND_IN[number % SERIES], _DASHES[number // SERIES % len(_DASHES)]
    axes.plot(x, y, color=colour, linestyle=dashes, linewidth=1.8, label=_short(label), **marks)


def frontier(
    series: Mapping[str, Sequence[tuple[float, float, float]]], *, x: str, y: str, name: str, zero: bool = False
) -> str:
    """One series of joined points with upright bars of their spread each.

    Args:
        series: Of each label: x, y and spread of its points, x rising.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        name: Unique on the page.
        zero: Whether a line marks y = 0; the horizontal axis then need not start at 0.
    """

    def draw(axes: Axes) -> None:
        for number, (label, points) in enumerate(series.items()):
            axes.errorbar(
                [point[0] for point in points],
                [point[1] for point in points],
                yerr=[point[2] for point in points],
                color=_STAND_IN[number % SERIES],
                linestyle=_DASHES[number // SERIES % len(_DASHES)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=5,
                linewidth=1.4,
                elinewidth=1.0,
                capsize=2,
                label=_short(label),
            )
        axes.margins(0.1)
        if zero:
            axes.axhline(0.0, color=_INK, linewidth=0.8)
        else:
            axes.set_xlim(left=0)

    return _svg(draw, x=x, y=y, name=name, legend=len(series))


def dots(groups: Sequence[str], series: Mapping[str, Sequence[float | None]], *, x: str, y: str, name: str) -> str:
    """Grouped dots on a common scale (bars would have to start at zero): one per group and series, None left out."""

    def draw(axes: Axes) -> None:
        step = 0.6 / max(len(series), 1)
        for number, (label, values) in enumerate(series.items()):
            shift = (number - (len(series) - 1) / 2) * step
            at = [(place + shift, value) for place, value in enumerate(values) if value is not None]
            axes.plot(
                [place for place, _ in at],
                [value for _, value in at],
                linestyle="none",
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=7,
                color=_STAND_IN[number % SERIES],
                label=_short(label),
            )
        axes.set_xticks(range(len(groups)), [_short(group) for group in groups])
        axes.margins(x=0.2 if len(groups) < 3 else 0.1, y=0.15)
        axes.grid(visible=False, axis="x")

    return _svg(draw, x=x, y=y, name=name, legend=len(series))


def reliability(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str, name: str) -> str:
    """One line per series beside the diagonal on which predictions are right; arguments as in :func:`lines`."""

    def draw(axes: Axes) -> None:
        ends = [
            max(max(horizontal, default=0.0), max(vertical, default=0.0)) for horizontal, vertical in series.values()
        ]
        end = max(ends, default=1.0)
        axes.plot([0, end], [0, end], color=_INK, linewidth=0.8, linestyle=":")
        for number, (label, (horizontal, vertical)) in enumerate(series.items()):
            colour, dashes = _STAND_IN[number % SERIES], _DASHES[number // SERIES % len(_DASHES)]
            axes.plot(
                horizontal, vertical, color=colour, linestyle=dashes, marker="o", markersize=3.5, label=_short(label)
            )

    return _svg(draw, x=x, y=y, name=name, legend=len(series))


def stacked(labels: Sequence[str], series: Mapping[str, Sequence[float]], *, x: str, name: str) -> str:
    """One horizontal bar for each label, of parts that add up.

    Args:
        labels: Of the bars, from the top.
        series: Of each part its size in every bar.
        x: Label of the horizontal axis.
        name: Unique on the page.
    """

    def draw(axes: Axes) -> None:
        places = [-place for place in range(len(labels))]
        left = [0.0] * len(labels)
        for number, (part, sizes) in enumerate(series.items()):
            axes.barh(places, sizes, left=left, height=0.6, color=_STAND_IN[number % SERIES], label=_short(part))
            left = [before + size for before, size in zip(left, sizes, strict=True)]
        axes.set_yticks(places, [_short(label) for label in labels])
        axes.set_ylim(-len(labels) + 0.4, 0.6)
        axes.grid(visible=False, axis="y")

    return _svg(draw, x=x, y="", name=name, legend=len(series), height=1.6 + 0.3 * len(labels))


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str, name: str) -> str:
    """One line per series on two logarithmic axes; a straight line is a power law. Arguments as in :func:`lines`."""

    def draw(axes: Axes) -> None:
        for number, (label, (horizontal, vertical)) in enumerate(series.items()):
            _line(axes, number, label, horizontal, vertical, marker=_MARKERS[number % len(_MARKERS)], markersize=5)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.margins(0.1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(EngFormatter(sep=""))
            axis.set_minor_formatter(NullFormatter())
        low, high = axes.get_ylim()
        if high < 4 * low:  # else noise would look like growth
            low, high = axes.set_ylim((low * high) ** 0.5 / 2, (low * high) ** 0.5 * 2)
        if high < 10 * low:  # a decade has one number: say a few more
            axes.yaxis.set_major_locator(MaxNLocator(5))

    return _svg(draw, x=x, y=y, name=name, legend=len(series))


def ratios(values: Mapping[str, float], *, x: str, name: str) -> str:
    """Ratios as dots on one logarithmic axis, each on a line of its own, with a line at 1.

    Args:
        values: By label, above 0.
        x: Label of the axis.
        name: Unique on the page.
    """

    def draw(axes: Axes) -> None:
        places = range(len(values))
        axes.hlines(places, 1.0, list(values.values()), color=_STAND_IN[0], linewidth=2.4)
        axes.plot(list(values.values()), places, linestyle="none", marker="o", markersize=6, color=_STAND_IN[0])
        axes.axvline(1.0, color=_INK, linewidth=0.8)
        axes.set_xscale("log")
        axes.margins(x=0.1)
        axes.set_xlim(min(axes.get_xlim()[0], 0.8), max(axes.get_xlim()[1], 1.25))
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(places, [_two_lines(label) for label in values], fontsize=8)
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")

    return _svg(draw, x=x, y="", name=name, legend=0, height=1.0 + 0.28 * len(values))


def shares(values: Mapping[str, float], *, name: str) -> str:
    """Shares of a whole as bars, each on a line of its own."""

    def draw(axes: Axes) -> None:
        axes.barh(range(len(values)), list(values.values()), height=0.6, color=_STAND_IN[0])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_yticks(range(len(values)), [_short(label) for label in values])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")

    return _svg(draw, x="share", y="", name=name, legend=0, height=1.0 + 0.26 * len(values))


def _two_lines(label: str) -> str:
    """A label on at most two lines."""
    return "\n".join(wrap(label, _LONGEST, max_lines=2, placeholder="…"))


def _short(label: str) -> str:
    """A label that leaves room for the plot; the tables have it whole."""
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"


def _svg(draw: Callable[[Axes], None], *, x: str, y: str, name: str, legend: int, height: float = 2.9) -> str:
    with context({**_STYLE, **_PLAIN_TEXT}):
        rows = -(-legend // 2)
        figure = Figure(figsize=(4.6, height + 0.2 * rows), layout="constrained")
        figure.patch.set_alpha(0)
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if isinstance(axes.yaxis.get_major_formatter(), ScalarFormatter):
            axes.ticklabel_format(axis="y", useOffset=False)
        if legend > 1:
            figure.legend(loc="outside upper left", ncols=2, fontsize=9)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _adopt(buffer.getvalue(), name)


def _adopt(svg: str, name: str) -> str:
    """Make a drawing part of a page: the page's colours, ids that no other drawing has, no outside references."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^<>]*>", _without_style, svg)  # within tags alone: a label may hold any text
    prefix = re.sub(r"\W+", "-", name)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    inherited = 'stroke-linejoin="round" stroke-linecap="butt"'  # what the style element said
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(name)}" {inherited}', 1)
    svg = svg.replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
    for number, stand_in in enumerate(_STAND_IN):
        svg = svg.replace(stand_in, f"var(--series-{number})")
    return svg


def _without_style(tag: re.Match[str]) -> str:
    """A tag whose style attribute has become attributes of its own, which a strict content-security policy allows."""

    def attributes(style: re.Match[str]) -> str:
        pairs = [declaration.partition(":") for declaration in style.group(1).split(";") if declaration.strip()]
        said = {name.strip(): value.strip() for name, _, value in pairs}
        size = re.search(r"[\d.]+px", said.pop("font", ""))
        if size is not None:
            said["font-size"] = size.group()
        return "".join(f' {name}="{escape(value)}"' for name, value in said.items())

    return re.sub(r'\sstyle="([^"]*)"', attributes, tag.group())
