"""``slipstream inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from slipstream.cli import output

if TYPE_CHECKING:
    from slipstream.evaluation.popularity_profile import PopularityProfile


def inspect(
    data: Annotated[Path, typer.Argument(help="Prepared data set.")],
    slices: Annotated[int, typer.Option(help="Slices in time between which drift is measured.")] = 10,
    json: Annotated[Path | None, typer.Option(help="Write the whole profile to this file.")] = None,
) -> None:
    """Show how skewed a data set's accesses are and how fast what is popular changes."""
    from slipstream.cli.prepare import describe
    from slipstream.data.atomic import write_text
    from slipstream.data.store import Store
    from slipstream.evaluation.popularity_profile import popularity_profile

    store = Store.open(data)
    describe(store)
    profile = popularity_profile(store, slices=slices)
    output.console.print(profile_table(profile))
    output.say(
        f"top rows kept: of a slice's {profile.top_fraction:.0%} most popular rows, the share that were so in the slice"
        f" before, mean over {len(profile.slice_starts)} slices; first to last: the last slice's against the first's"
    )
    if json is not None:
        write_text(json, profile.model_dump_json(indent=2) + "\n")
        output.say(f"profile: {json}")


def profile_table(profile: PopularityProfile) -> Table:
    """One line per feature, all together first."""
    table = Table()
    shares = list(profile.overall.top_shares)
    titles = ["feature", "rows", "seen", *(f"top {share:.1%} take" for share in shares), "Gini", "Zipf"]
    titles += ["top rows kept", "first to last", "new accesses"]
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number else "left", overflow="fold")
    for row in (profile.overall, *profile.features):
        cells = [row.name, f"{row.num_rows:,}", f"{row.rows_seen / row.num_rows:.0%}"]
        cells += [f"{row.top_shares[share]:.1%}" for share in shares]
        cells += [f"{row.gini:.3f}", "–" if row.zipf_exponent is None else f"{row.zipf_exponent:.2f}"]
        cells += [_mean(row.overlap), f"{row.overlap_first_last:.0%}", _mean(row.new_accesses)]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _mean(shares: tuple[float, ...]) -> str:
    return f"{sum(shares) / len(shares):.0%}" if shares else "–"
