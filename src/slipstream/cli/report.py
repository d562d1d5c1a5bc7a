"""``slipstream report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import output


def report(
    run: Annotated[Path, typer.Argument(help="Run folder, as given to `slipstream train --out`; it need not be over.")],
    html: Annotated[
        Path | None,
        typer.Option(help="The page's file; without it, report.html in the run folder.", dir_okay=False),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page; without it, the run's name.")] = None,
) -> None:
    """Write one self-contained page about a run: quality over time, what was skipped, where the time went."""
    from slipstream.data.atomic import write_text
    from slipstream.report.run_page import key_figures, run_page, state
    from slipstream.report.runs import open_run

    found = open_run(run)
    output.say(state(found))
    output.facts({name: f"{value}  ({note})" if note else value for name, value, note in key_figures(found)})
    file = html or run / "report.html"
    write_text(file, run_page(found, title=title))
    output.say(f"page: {file}")
