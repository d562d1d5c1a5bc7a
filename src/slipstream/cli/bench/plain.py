"""Benchmarks that take nothing but what all take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from slipstream.bench import BENCHES, BenchOptions
from slipstream.cli.bench.common import Cache, Json, Quick, Seed, Threads, measure
from slipstream.errors import DataError

STUDIES = ("frontier", "drift", "continue", "guard", "scale")
"""Those with options of their own."""


def register(app: typer.Typer) -> None:
    """Adds their commands."""
    for name, what in BENCHES.items():
        if name not in STUDIES:
            app.command(name.replace("_", "-"), help=f"{what[0].upper()}{what[1:]}.")(_command(name))


def _command(name: str) -> Callable[..., None]:
    def command(
        quick: Quick = False,
        json: Json = None,
        threads: Threads = None,
        data: Annotated[
            Path | None, typer.Option(help="The input, where the benchmark reads real data: a file or a folder.")
        ] = None,
        cache: Cache = None,
        seed: Seed = 0,
    ) -> None:
        if data is not None and not data.exists():
            raise DataError("no such data", file=data)
        measure(name, BenchOptions(quick, threads, data=data, cache=cache, seed=seed), json)

    return command
