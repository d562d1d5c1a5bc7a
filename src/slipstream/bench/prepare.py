"""A Criteo TSV into the column store: rows a second, and peak memory at two sizes of the file.

The input is ``--data``, a Criteo Kaggle file; without it ``../shared/data/criteo_kaggle_8k/criteo_kaggle_8000.tsv``
beside the project, or, where that is missing, 8,000 made-up lines of the same form. Its rows are tiled to 2 million,
so it holds no more distinct values than the 8,000 do. The peer is Polars: read the whole file with one dictionary a
column and write ids and numbers with numpy. It holds all in memory, and neither orders values by frequency nor checks
or keeps anything for later files.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import polars as pl

from slipstream.bench import BenchOptions
from slipstream.bench.rounds import ratio, row
from slipstream.data.formats import open_raw
from slipstream.data.prepare import PrepareOptions, prepare
from slipstream.errors import DataError
from slipstream.report.record import Record

QUICK, FULL = (200_000, 1), (2_000_000, 5)
"""Rows and rounds."""
_DEFAULT = Path("../shared/data/criteo_kaggle_8k/criteo_kaggle_8000.tsv")
_CATEGORIES = [f"C{i}" for i in range(1, 27)]
_NUMBERS = [f"I{i}" for i in range(1, 14)]


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``quick`` tiles to 200,000 rows instead of 2 million and takes one round instead of five.

    Returns:
        ``ratios``: ``polars``. ``quality``: median rows a second of ours, and peak memory (MiB) for the file and for
        one a quarter its size.
    """
    rows, rounds = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-", dir=options.cache) as temporary:
        folder = Path(temporary)
        name, lines = _lines(options)
        files = [_tile(folder / f"{part}.tsv", lines, rows // part) for part in (4, 1)]
        # A process of its own for each, as peak memory can only be read for a whole process.
        peaks = [_child("ours", file, folder / "store")["peak_mib"] for file in files]
        seconds: dict[str, list[float]] = {"slipstream": [], "polars": []}
        peer_peak = 0.0
        for _ in range(rounds):
            seconds["slipstream"].append(_child("ours", files[1], folder / "store")["seconds"])
            peer = _child("polars", files[1], folder / "peer")
            seconds["polars"].append(peer["seconds"])
            peer_peak = max(peer_peak, peer["peak_mib"])
        size = files[1].stat().st_size
    return Record(
        name="prepare",
        dataset=f"{name}, {len(lines):,} lines tiled to {rows:,} ({size:,} bytes)",
        conditions={
            "quick": options.quick,
            "threads": PrepareOptions().threads,
            "unit": "seconds a file, compilation and start of Python not counted",
            "passes": "ours two (vocabularies, encoding), Polars one",
        },
        ratios={"polars": ratio(seconds["slipstream"], seconds["polars"])},
        quality={
            "rows per second": round(rows / float(np.median(seconds["slipstream"]))),
            "peak MiB": round(peaks[1], 1),
            "peak MiB at a quarter of the rows": round(peaks[0], 1),
            "peak MiB of Polars": round(peer_peak, 1),
        },
        rows=[row(system, values, rows=rows) for system, values in seconds.items()],
    )


def _lines(options: BenchOptions) -> tuple[str, list[bytes]]:
    path = options.data or (_DEFAULT if _DEFAULT.is_file() else None)
    if path is None:
        return "made-up lines of Criteo's form", _made_up(options.seed)
    if open_raw(path).format != "criteo":
        raise DataError("is not a Criteo TSV", file=path)
    with path.open("rb") as file:
        return f"Criteo Kaggle ({path.name})", [line for _, line in zip(range(8000), file, strict=False)]


def _made_up(seed: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    numbers = rng.geometric(0.02, (8000, 13))
    categories = rng.zipf(1.2, (8000, 26)) % 2**31
    labels = rng.random(8000) < 0.25
    return [
        "\t".join([str(int(y)), *map(str, n), *(f"{c:08x}" for c in category)]).encode() + b"\n"
        for y, n, category in zip(labels, numbers, categories, strict=True)
    ]


def _tile(path: Path, lines: list[bytes], rows: int) -> Path:
    whole = b"".join(lines)
    with path.open("wb") as file:
        for _ in range(rows // len(lines)):
            file.write(whole)
        file.writelines(lines[: rows % len(lines)])
    return path


def _child(system: str, source: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "slipstream.bench.prepare", system, str(source), str(out)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _polars(source: Path, out: Path) -> None:
    names = ["label", *_NUMBERS, *_CATEGORIES]
    types = {"label": pl.UInt8} | dict.fromkeys(_NUMBERS, pl.Float32)
    frame = pl.read_csv(
        source, separator="\t", has_header=False, new_columns=names, schema_overrides=types, quote_char=None
    )
    coded = frame.select(
        pl.col("label"),
        *(pl.col(name).clip(0).log1p().fill_null(0) for name in _NUMBERS),
        *(pl.col(name).fill_null("").cast(pl.Categorical).to_physical() for name in _CATEGORIES),
    )
    out.mkdir(exist_ok=True)
    np.save(out / "ids.npy", coded.select(_CATEGORIES).to_numpy())
    np.save(out / "dense.npy", coded.select(_NUMBERS).to_numpy())
    np.save(out / "labels.npy", coded["label"].to_numpy())
    for name in _CATEGORIES:
        frame.select(pl.col(name).unique()).write_parquet(out / f"{name}.parquet")


def _main(system: str, source: Path, out: Path) -> None:
    """The child's part: prepare once on a few lines (compilation), then measure the whole file."""
    few = out.with_name("few.tsv")
    with source.open("rb") as file:
        few.write_bytes(b"".join(line for _, line in zip(range(500), file, strict=False)))

    def work(path: Path) -> None:
        if system == "ours":
            prepare(path, out, format="criteo", overwrite=True)
        else:
            _polars(path, out)

    work(few)
    begin = perf_counter()
    work(source)
    seconds = perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak}))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
