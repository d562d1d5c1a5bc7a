"""Another library's training before and after: the same metric with nothing skipped, the time, and skipping on.

    python -m examples.compare fuxictr --json interop_fuxictr.json
    python -m examples.compare fuxictr --quick

Needs the library: ``make interop`` makes an environment from ``examples/<library>/requirements.txt`` and runs this on
all data; ``make interop-quick`` checks every model on little of it, in CI.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch: see `slipstream doctor`

import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from examples.clicks import movietweetings, wide

LIBRARIES = ("fuxictr", "deepctr_torch", "recbole", "torchrec")
TOLERANCE = 1e-4
"""Largest difference of the metric with nothing skipped and dense semantics."""


@dataclass(frozen=True)
class Size:
    """How much is trained on."""

    train: int = 80_000
    """Ratings whose training the metric is of."""
    test: int = 20_000
    """Ratings after them, for the metric."""
    rows: int = 1_000_000
    """Rows of the tables in the timed trainings."""
    timed: int = 51_200
    """Samples of a timed training."""
    turns: int = 3
    """Timed trainings of each kind, of which the best is taken."""


QUICK = Size(train=16_384, test=4_096, rows=20_000, timed=8_192, turns=1)
"""Enough to tell whether the metric differs; its times are not for quoting."""


@dataclass
class Outcome:
    """A training."""

    metric: float
    """Of samples it has not seen."""
    seconds: float
    """Of the training, loading included, scoring not."""
    report: Any = None
    """The Skipper's, if there was one."""


def compare(library: str, size: Size) -> Iterator[dict[str, Any]]:
    """A row for each model of a library, as soon as it is there."""
    from slipstream.policies import NoSkipping, Random

    cases = import_module(f"examples.{library}.cases")
    clicks = movietweetings()
    train, test = clicks.part(0, size.train), clicks.part(size.train, size.train + size.test)
    timed = wide(size.rows, size.timed)
    for name in cases.MODELS:
        with tempfile.TemporaryDirectory() as folder:

            def run(train: Any, test: Any, untouched: str | None, policy: Any = None) -> Outcome:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return cases.run(name, train, test, Path(folder), untouched, policy)  # noqa: B023

            own, none = run(train, test, None), run(train, test, "dense", NoSkipping())
            lazy, half = run(train, test, "lazy"), run(train, test, "lazy", Random(0.5))
            run(timed.part(0, 4096), None, "lazy")  # compiled kernels are loaded
            times: dict[str, list[float]] = {"own": [], "ours": [], "half": []}
            for _ in range(size.turns):
                times["own"].append(run(timed, None, None).seconds)
                times["ours"].append(run(timed, None, "lazy").seconds)
                times["half"].append(run(timed, None, "lazy", Random(0.5)).seconds)
        best = {kind: min(values) for kind, values in times.items()}
        yield {
            "library": library,
            "model": name,
            "metric": cases.METRIC,
            "rows": size.rows,
            "own": own.metric,
            "none_dense": none.metric,
            "difference": abs(none.metric - own.metric),
            "lazy": lazy.metric,
            "random_half": half.metric,
            "share_of_inputs": half.report.share_of_inputs_trained,
            "seconds_own": best["own"],
            "seconds_ours": best["ours"],
            "seconds_random_half": best["half"],
            "speedup": best["own"] / best["ours"],
        }


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['library']} {row['model']}: {row['metric']} {row['own']:.5f}, nothing skipped {row['none_dense']:.5f} "
        f"(difference {row['difference']:.1e}), lazy {row['lazy']:.5f}, random half {row['random_half']:.5f} "
        f"({row['share_of_inputs']:.1%} of inputs); {row['rows']:,} rows: {row['seconds_own']:.2f} s -> "
        f"{row['seconds_ours']:.2f} s ({row['speedup']:.1f}x), random half {row['seconds_random_half']:.2f} s"
    )


def _summary(library: str, rows: list[dict[str, Any]]) -> str:
    equal, largest = sum(row["difference"] <= TOLERANCE for row in rows), max(row["difference"] for row in rows)
    return f"{library}: {equal} of {len(rows)} models equal within {TOLERANCE} (largest difference {largest:.1e})"


def _save(path: Path, library: str, size: Size, rows: list[dict[str, Any]]) -> None:
    from slipstream.report.machine import commit
    from slipstream.report.record import Record

    Record(
        name=f"interop {library}",
        commit=commit(Path(__file__)),
        command=f"python -m examples.compare {library}",
        dataset=f"MovieTweetings (metric), {size.rows:,} rows with popularity 1/rank (time)",
        conditions={
            "threads": torch.get_num_threads(),
            "batch_size": 1024,
            "dim": 16,
            "optimizer": "Adam, theirs dense, ours lazy",
            "seconds": f"best of {size.turns} trainings on {size.timed:,} clicks (RecBole: less its holdout)",
        },
        ratios={row["model"]: round(row["speedup"], 2) for row in rows},
        quality={f"{row['metric']} {row['model']} {kind}": round(row[kind], 6) for row in rows for kind in _KINDS},
        rows=rows,
    ).save(path)


def main() -> int:
    """Compares, writes a record, and fails where the metric differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", choices=LIBRARIES)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", type=Path, help="write a record of the figures")
    how.add_argument("--quick", action="store_true", help="little data: is the metric the same, does skipping run")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else Size()
    logging.disable(logging.WARNING)
    rows: list[dict[str, Any]] = []
    for row in compare(arguments.library, size):
        print(_line(row), flush=True)
        rows.append(row)
    if arguments.json is not None:
        _save(arguments.json, arguments.library, size, rows)
    print(_summary(arguments.library, rows), flush=True)
    return int(any(not row["difference"] <= TOLERANCE for row in rows))


_KINDS = ("own", "none_dense", "lazy", "random_half")

if __name__ == "__main__":
    sys.exit(main())
