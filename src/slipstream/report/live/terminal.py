"""A run while it trains, in the terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from slipstream.report.figures import inputs_skipped, loss_over_samples, quality_over_time, updates_skipped
from slipstream.report.live.watched import Watched
from slipstream.report.run_page import key_figures, state
from slipstream.report.runs import Run

_BARS = "▁▂▃▄▅▆▇█"


def watch_in_terminal(watched: Watched, console: Console, *, poll: float = 0.5) -> None:
    """Show the run until its training is over.

    Args:
        watched: The run.
        console: Where.
        poll: Seconds between two looks at the folder.

    Raises:
        DataError: A file of the run cannot be read.
    """
    stale = True  # nothing was shown yet, of what an earlier look may have found
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        while True:
            if watched.look() or stale:
                live.update(screen(watched.run()))
                stale = False
            if watched.finished:
                return
            if word := watched.deserted():
                live.console.print(Text(word))
            time.sleep(poll)


def screen(run: Run) -> RenderableType:
    """What the terminal shows of a run."""
    total = run.log.start.total_samples if run.log.start is not None else 0
    done = total if run.finished else min(run.log.samples, total)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(style="dim", overflow="fold")
    for name, value, note in key_figures(run):
        table.add_row(name, value, note)
    curves = {
        "AUC": quality_over_time(run),
        "loss": loss_over_samples(run),
        "inputs skipped": inputs_skipped(run),
        "row updates skipped": updates_skipped(run),
    }
    for name, curve in curves.items():
        if curve is not None:
            table.add_row(f"{name} so far", Text(sparkline(curve[1])), f"{curve[1][0]:.4g} to {curve[1][-1]:.4g}")
    if run.log.unreadable:
        table.add_row("unreadable lines", f"{run.log.unreadable:,}", "of metrics.jsonl, passed over")
    return Group(Text(f"{run.name}: {state(run)}"), ProgressBar(total=max(total, 1), completed=done), table)


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Values as a row of bars of eight heights, from the least to the greatest of them."""
    shown = [values[place * len(values) // width] for place in range(width)] if len(values) > width else list(values)
    low, high = min(shown), max(shown)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in shown)
