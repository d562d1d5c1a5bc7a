"""``slipstream bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import output


def bench(
    name: Annotated[str, typer.Argument(help="kernels, step, gates, shared, loader, prepare, globo or synthetic-fit.")],
    quick: Annotated[bool, typer.Option(help="Smaller and fewer measurements, under 40 s once compiled.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the record to this file.", dir_okay=False)] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to compute with.")] = None,
    data: Annotated[Path | None, typer.Option(help="The input of benchmarks that read real data.", exists=True)] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for prepared data between runs.", file_okay=False)] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
) -> None:
    """Measure ours against peers in one process, alternating."""
    from slipstream.bench import BenchOptions, run

    record = run(name.replace("-", "_"), BenchOptions(quick=quick, threads=threads, data=data, cache=cache, seed=seed))
    output.record_tables(record)
    if json is not None:
        output.say(f"record: {record.save(json)}")
