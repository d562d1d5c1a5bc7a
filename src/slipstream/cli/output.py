"""How commands print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from slipstream.report.columns import GAP, fill, least_width

if TYPE_CHECKING:
    from slipstream.report.record import Record


console = Console(highlight=False)


def say(text: str) -> None:
    """Print a line; square brackets in it are no markup."""
    console.print(Text(text), soft_wrap=True)


def facts(pairs: Mapping[str, Any], *, title: str | None = None) -> None:
    """Print names and values in two columns; values that are None are left out."""
    if title is not None:
        console.print(Text(title, style="bold"))
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs.items():
        if value is not None:
            grid.add_row(Text(str(name)), Text(figure(value)))
    console.print(grid)


def figure(value: Any) -> str:
    """A value as people read it: four decimals for a fraction, separators in large counts."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def record_tables(record: Record) -> None:
    """Print a benchmark's ratios, quality and measurements."""
    facts({**record.conditions, "data": record.dataset or None}, title=record.name)
    if record.rows:
        names = list(dict.fromkeys(name for row in record.rows for name in row))
        rows = [[figure(row.get(name, "")) for name in names] for row in record.rows]
        texts = [place for place, name in enumerate(names) if isinstance(record.rows[0].get(name), str)]
        # A table that is wider than the terminal all the same goes over its lines: half a figure would be wrong.
        width = max(console.width, least_width(names, rows))
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
        fill(table, names, rows, width=width, left=texts)
        console.print(table, width=width, crop=False)
    if record.ratios:
        facts(
            {name: f"{ratio:.2f}x" for name, ratio in record.ratios.items()}, title="ours against (above 1 is faster)"
        )
    if record.quality:
        facts(record.quality, title="quality")
