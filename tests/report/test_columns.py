"""Tables in narrow terminals keep their figures whole."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from slipstream.report.columns import GAP, fill


@pytest.mark.parametrize("width", [44, 80, 200])
def test_figures_are_never_cut(width: int) -> None:
    table = Table(box=None, padding=(0, GAP - 1, 0, 0), pad_edge=False)
    rows = [["importance-at-half-the-inputs", "1,234,567", "100.0%"], ["[b]full", "12", "0.0%"]]
    fill(table, ["run", "samples per second", "row updates skipped"], rows, width=width)
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    shown = out.getvalue()
    assert all(len(line) <= width for line in shown.splitlines())
    assert all(text in shown for text in ("1,234,567", "100.0%", "0.0%", "[b]full"))
    assert ("importance-at-half-the-inputs" in shown) == (width > 44)
    assert "skipped" in shown
