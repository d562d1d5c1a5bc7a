"""``slipstream prepare``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import output
from slipstream.cli.settings import resolve

if TYPE_CHECKING:
    from slipstream.data.store import Store

FORMATS = "criteo, criteo_terabyte, avazu, movielens, movietweetings, globo, pairs, parquet or csv"


def prepare(
    source: Annotated[Path, typer.Argument(help="Raw file or folder.")],
    out: Annotated[Path, typer.Argument(help="Folder of the prepared data set.")],
    format: Annotated[str | None, typer.Option(help=f"{FORMATS}; without it, detected.")] = None,
    schema: Annotated[
        Path | None, typer.Option(help="YAML with label, time, categorical, dense, multi_hot; for parquet and csv.")
    ] = None,
    on_bad_row: Annotated[
        str | None,
        typer.Option(
            help="stop (default): end at a malformed row; quarantine: set such rows aside in a file and count them."
        ),
    ] = None,
    min_frequency: Annotated[
        int | None, typer.Option(help="Categories seen less often share the out-of-vocabulary row (1).")
    ] = None,
    hash_rows: Annotated[
        int | None, typer.Option(help="Hash categories to tables of so many rows instead of keeping vocabularies.")
    ] = None,
    negatives: Annotated[
        int | None, typer.Option(help="Non-clicks drawn for each click, for data of clicks only (globo 2, pairs 1).")
    ] = None,
    label_threshold: Annotated[float | None, typer.Option(help="Labels at least this are 1, others 0.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with options by name.")] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Any option, such as nan=missing; repeatable.")
    ] = None,
    extend_vocabulary: Annotated[
        Path | None,
        typer.Option(
            help="A prepared data set whose vocabularies are extended: values it knows keep their ids, new ones come "
            "after them. For the next slice that `slipstream train --continue` goes on with.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set that is already there.")] = False,
) -> None:
    """Turn a raw data set into memory-mapped columns, once."""
    from slipstream.data.prepare import PrepareOptions
    from slipstream.data.prepare import prepare as run
    from slipstream.data.schema import Schema

    flags = {
        "on_bad_row": on_bad_row,
        "min_frequency": min_frequency,
        "hash_rows": hash_rows,
        "negatives": negatives,
        "label_threshold": label_threshold,
    }
    options = resolve(PrepareOptions, config, flags, assign or ())
    columns = Schema.load(schema) if schema is not None else None
    with progress() as report:
        store = run(
            source,
            out,
            format=format,
            schema=columns,
            options=options,
            extend=extend_vocabulary,
            overwrite=overwrite,
            progress=report,
        )
    describe(store)


@contextmanager
def progress() -> Iterator[Callable[[str, int], None]]:
    """A line with stage and rows that goes away at the end; nothing where there is no terminal."""
    with output.console.status("reading", spinner="line") as status:
        yield lambda stage, rows: status.update(f"{stage}: {rows:,} rows")


def describe(store: Store) -> None:
    """Print what a prepared data set holds."""
    provenance, positives = store.manifest.provenance, store.manifest.num_positives
    bad, drawn = provenance.get("bad_rows"), provenance.get("negatives")
    each = drawn.get("per_positive") if isinstance(drawn, dict) else None
    # The provenance is free: whoever writes stores may say what they like.
    quarantined = f"{bad:,}, see {store.path / 'quarantine.tsv'}" if bad and isinstance(bad, int) else None
    output.facts(
        {
            "format": provenance.get("format"),
            "samples": store.num_samples,
            "time": _times(store),
            "positives": f"{positives:,.0f} ({positives / max(store.num_samples, 1):.1%})",
            "sparse features": ", ".join(f"{feature.name} ({feature.num_rows:,} rows)" for feature in store.features),
            "dense features": store.num_dense or None,
            "non-clicks": f"{each} drawn for each click" if each else None,
            "quarantined rows": quarantined,
            "fingerprint": store.fingerprint[:12],
            "folder": store.path,
        }
    )


def _times(store: Store) -> str | None:
    """The first and the last time, so that units or dates that were misread are seen."""
    if store.time is None or not store.num_samples:
        return None
    first, last = (datetime.fromtimestamp(int(store.time[at]), tz=UTC) for at in (0, -1))
    return f"{first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} (UTC)"
