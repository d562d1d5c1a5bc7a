"""The commands under one roof."""

from __future__ import annotations

from typing import Annotated

import typer

from slipstream._version import __version__
from slipstream.cli import bench, compare, doctor, evaluate, inspect, predict, prepare, profile, report, train, watch

app = typer.Typer(
    name="slipstream",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"slipstream {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the whole traceback of an error; may stand anywhere on the line.")
    ] = False,
) -> None:
    """Train recommender models faster by skipping what no longer teaches the model anything."""


app.command("prepare")(prepare.prepare)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("compare")(compare.compare)
app.command("report")(report.report)
app.command("watch")(watch.watch)
app.command("inspect")(inspect.inspect)
app.command("profile")(profile.profile)
app.command("doctor")(doctor.doctor)
app.command("bench")(bench.bench)
