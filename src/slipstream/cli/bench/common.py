"""What the benchmarks' commands share: options, and what becomes of a record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.bench import BenchOptions, run
from slipstream.cli import output
from slipstream.errors import ConfigError

if TYPE_CHECKING:
    from slipstream.report.record import Record

app = typer.Typer(
    no_args_is_help=True,
    help="Measure ours against peers in one process, alternating; or policies against each other.",
)

Quick = Annotated[bool, typer.Option("--quick", help="Smaller and fewer measurements, under 40 s once compiled.")]
Json = Annotated[Path | None, typer.Option(help="Write the record to this file.", dir_okay=False)]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to compute with.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for prepared data between runs.", file_okay=False)]
Seed = Annotated[int, typer.Option(help="Seed of everything drawn; the first of several.")]
Seeds = Annotated[int | None, typer.Option(help="Trainings of each kind.")]
Samples = Annotated[int | None, typer.Option(help="Use only the first so many samples.")]
Folder = Annotated[Path | None, typer.Option(help="Where public data sets lie (../shared/data).", file_okay=False)]
Html = Annotated[Path | None, typer.Option(help="Draw the record on a page.", dir_okay=False)]
Policies = Annotated[str | None, typer.Option(help="Names, by commas.")]

_HIDDEN = ("tuning", "variants")
_SHOWN = (
    *("policy", "way", "budget", "data", "variant", "AUC", "NDCG", "seconds", "to full", "inputs", "skipped"),
    *("above random", "same time", "to full retrained", "samples a slice", "seconds a slice"),
)


def measure(name: str, options: BenchOptions, json: Path | None, *, study: bool = False) -> Record:
    """Runs a benchmark, prints its record and keeps it.

    Args:
        name: Of the benchmark.
        options: Its options.
        json: Where the record is kept; None: nowhere.
        study: Whether the record has more than fits a terminal: then its most important columns are printed.
    """
    record = run(name, options)
    output.record_tables(_brief(record) if study else record)
    if json is not None:
        output.say(f"record: {record.save(json)}")
    return record


def draw(html: Path | None, make: Callable[[], str]) -> None:
    """Writes the page that ``make`` makes, if one is wanted."""
    if html is not None:
        from slipstream.data.atomic import write_text

        write_text(html, make())
        output.say(f"page: {html}")


def given(**options: Any) -> dict[str, Any]:
    """The options that were given; the others are left to the benchmark's defaults."""
    return {name: value for name, value in options.items() if value is not None}


def split(text: str | None) -> tuple[str, ...] | None:
    """The parts of a list with commas."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(name: str, text: str | None, allowed: str) -> tuple[float, ...] | None:
    """The numbers of a list with commas.

    Raises:
        ConfigError: One is none.
    """
    try:
        return None if text is None else tuple(float(part) for part in split(text) or ())
    except ValueError as error:
        raise ConfigError(f"{name} must be numbers in {allowed} with commas between, got {text!r}") from error


def _brief(record: Record) -> Record:
    conditions = {key: value for key, value in record.conditions.items() if key not in _HIDDEN}
    rows = [{name: row[name] for name in _SHOWN if name in row} for row in record.rows]
    return record.model_copy(update={"conditions": conditions, "rows": rows})
