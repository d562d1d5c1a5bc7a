"""``slipstream compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import output


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, as given to `slipstream train --out`.")],
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page with plots.", dir_okay=False)] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the figures as CSV.", dir_okay=False)] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Slipstream: runs compared",
) -> None:
    """Set runs side by side: time, AUC, log-loss, what was skipped."""
    from slipstream.data.atomic import write_text
    from slipstream.report.runs import load_runs
    from slipstream.report.table import csv_text, terminal_table

    loaded = load_runs(runs)
    output.console.print(terminal_table(loaded, width=output.console.width))
    if csv is not None:
        write_text(csv, csv_text(loaded))
        output.say(f"figures: {csv}")
    if html is not None:
        from slipstream.report.html import compare_page

        write_text(html, compare_page(loaded, title=title))
        output.say(f"page: {html}")
