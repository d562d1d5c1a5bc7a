"""Benchmarks with few options or none of their own."""

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
ON_DATA = ("cache_bytes", "globo", "gpu", "prepare", "row_share")
"""Those that read real data."""
CACHED = ("fidelity", "loader", "profile_step", "synthetic_fit")
"""Those that make data which is worth keeping."""


def register(app: typer.Typer) -> None:
    """Adds their commands."""
    for name, what in BENCHES.items():
        if name not in STUDIES:
            make = _on_data if name in ON_DATA else _cached if name in CACHED else _plain
            app.command(name.replace("_", "-"), help=f"{what[0].upper()}{what[1:]}.")(make(name))


def _plain(name: str) -> Callable[..., None]:
    def command(quick: Quick = False, json: Json = None, threads: Threads = None, seed: Seed = 0) -> None:
        measure(name, BenchOptions(quick, threads, seed=seed), json)

    return command


def _cached(name: str) -> Callable[..., None]:
    def command(
        quick: Quick = False, json: Json = None, threads: Threads = None, cache: Cache = None, seed: Seed = 0
    ) -> None:
        measure(name, BenchOptions(quick, threads, cache=cache, seed=seed), json)

    return command


def _on_data(name: str) -> Callable[..., None]:
    def command(
        quick: Quick = False,
        json: Json = None,
        threads: Threads = None,
        data: Annotated[Path | None, typer.Option(help="The input: a file or a folder.")] = None,
        cache: Cache = None,
        seed: Seed = 0,
    ) -> None:
        if data is not None and not data.exists():
            raise DataError("no such data", file=data)
        measure(name, BenchOptions(quick, threads, data=data, cache=cache, seed=seed), json)

    return command
