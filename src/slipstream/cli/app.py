"""The commands under one roof."""

from __future__ import annotations

from typing import Annotated

import typer

from slipstream._version import __version__
from slipstream.cli import bench, compare, doctor, evaluate, inspect, predict, prepare, profile, report, train, watch

EPILOG = (
    "Exit status: 0 done; 1 a check of doctor failed; 2 bad input, a wrong command line or a refusal of the system, "
    "said in one line; a training that was saved and ended: 129 by SIGHUP, 130 by Ctrl-C, 143 by SIGTERM."
)

app = typer.Typer(
    name="slipstream",
    no_args_is_help=True,
    epilog=EPILOG,
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


app.command("prepare", epilog=EPILOG)(prepare.prepare)
app.command("train", epilog=EPILOG)(train.train)
app.command("evaluate", epilog=EPILOG)(evaluate.evaluate)
app.command("predict", epilog=EPILOG)(predict.predict)
app.command("compare", epilog=EPILOG)(compare.compare)
app.command("report", epilog=EPILOG)(report.report)
app.command("watch", epilog=EPILOG)(watch.watch)
app.command("inspect", epilog=EPILOG)(inspect.inspect)
app.command("profile", epilog=EPILOG)(profile.profile)
app.command("doctor", epilog=EPILOG)(doctor.doctor)
app.add_typer(bench.app, name="bench", epilog=EPILOG)
