"""Cost per sample against the tables: how many rows, in memory or in a file, and how many features."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slipstream.bench import BenchOptions, dlrm_step, workload
from slipstream.bench.rounds import compete, row
from slipstream.bench.scale_options import ScaleOptions
from slipstream.embedding.memory import empty_table, mapped_table
from slipstream.models import DLRMConfig

DIM = 16
SIZES = (100_000, 1_000_000, 10_000_000, 100_000_000)
"""Rows of all 26 tables."""
FEATURES = (8, 32, 128, 512)
INTERACTING = 128
"""Features up to which a DLRM is measured too: its interaction grows with their square."""
FEATURE_ROWS = 1_000_000
_FILL = 16 << 20
"""Bytes written to a file at a time."""


def rows(options: BenchOptions, wanted: ScaleOptions, folder: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Steps of the Kaggle DLRM, and lookup with row update alone, for tables of 10^5 to 10^8 rows.

    In memory all sizes take turns. In files (memory-mapped, filled with numbers first) each size runs alone, on batches
    of new ids: first with nothing of the file in memory (*cold*: what a table costs of which no page is cached, as one
    far beyond memory), then on the same batches again (*warm*).
    """
    sizes = SIZES[: 2 if options.quick else 4]
    rounds, steps = (4, 2) if options.quick else (24, 2)
    found: list[dict[str, Any]] = []
    trainings: dict[int, dlrm_step.Training] = {}
    distinct: dict[int, float] = {}
    for total in sizes:
        counts, batches = dlrm_step.kaggle_batches(total, batches=12 if options.quick else 32, seed=options.seed)
        weights = {f"c{i}": empty_table(count, DIM).fill_(0.01) for i, count in enumerate(counts)}
        trainings[total] = dlrm_step.Training(counts, batches, weights=weights)
        distinct[total] = workload.shares(batches)["distinct_rows_per_lookup"]
    del weights
    for series, name in (("lookup and row update", "embedding_step"), ("DLRM step", "step")):
        steps_of = {str(total): getattr(training, name) for total, training in trainings.items()}
        for total, seconds in compete(steps_of, rounds=rounds, steps_per_round=steps, warm_up=8).items():
            found.append(_row(series, int(total), seconds, distinct[int(total)]))
        del steps_of
    trainings.clear()
    gc.collect()
    for total in sizes[1 if options.quick else 2 :]:
        found += _from_file(total, options, folder)
        gc.collect()
    return found, {}


def _row(series: str, size: int, seconds: Sequence[float], distinct: float) -> dict[str, Any]:
    """A row in seconds a sample."""
    each = [value / workload.BATCH_SIZE for value in seconds]
    return {**row("slipstream", each), "series": series, "size": size, "distinct rows per lookup": distinct}


def _from_file(total: int, options: BenchOptions, folder: Path) -> list[dict[str, Any]]:
    counts, batches = dlrm_step.kaggle_batches(total, batches=6 if options.quick else 16, seed=options.seed + 1)
    files = [folder / f"{total}-{i}.table" for i in range(len(counts))]
    for file, count in zip(files, counts, strict=True):
        fill_file(file, count * DIM * 4)
        forget(file)
    weights = {
        f"c{i}": mapped_table(file, count, DIM) for i, (file, count) in enumerate(zip(files, counts, strict=True))
    }
    training = dlrm_step.Training(counts, batches, weights=weights)
    distinct = workload.shares(batches)["distinct_rows_per_lookup"]
    found = []
    for series in ("lookup and row update, file cold", "lookup and row update, file warm"):
        seconds = list(_timed(training.embedding_step, len(batches)))
        found.append(_row(series, total, seconds, distinct))
    found.append(_row("DLRM step, file warm", total, list(_timed(training.step, len(batches))), distinct))
    del training, weights
    gc.collect()
    for file in files:
        file.unlink()
    return found


def _timed(step: Callable[[int], object], count: int) -> Iterator[float]:
    for number in range(count):
        start = perf_counter()
        step(number)
        yield perf_counter() - start


def fill_file(file: Path, size: int) -> None:
    """Writes a file of float32 numbers, so that no page of it is a hole."""
    block = np.full(_FILL // 4, 0.01, np.float32).tobytes()
    with file.open("wb") as out:
        for start in range(0, size, _FILL):
            out.write(block[: min(_FILL, size - start)])
        out.flush()
        os.fsync(out.fileno())


def forget(file: Path) -> None:
    """Asks the system to drop a file's pages from memory; nobody may have it mapped."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def features(
    options: BenchOptions, wanted: ScaleOptions, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The same number of rows in 8 to 512 tables: lookup and row update, and a DLRM with a small MLP up to 128."""
    counts = FEATURES[: 2 if options.quick else 4]
    rounds = 4 if options.quick else 20
    found: list[dict[str, Any]] = []
    trainings = {count: _many_features(count, options.seed) for count in counts}
    interacting = {count: training for count, training in trainings.items() if count <= INTERACTING}
    for series, name, chosen in (
        ("lookup and row update", "embedding_step", trainings),
        ("DLRM step, MLP of 64", "step", interacting),
    ):
        steps = {str(count): getattr(training, name) for count, training in chosen.items()}
        for count, seconds in compete(steps, rounds=rounds, steps_per_round=2, warm_up=4).items():
            each = [value / workload.BATCH_SIZE for value in seconds]
            found.append({**row("slipstream", each), "series": series, "size": int(count)})
    return found, {}


def _many_features(count: int, seed: int) -> dlrm_step.Training:
    tables = (FEATURE_ROWS // count,) * count
    batches: list[Tensor] = workload.zipf_batches(tables, batches=6, seed=seed)
    weights = {f"c{i}": empty_table(size, DIM).fill_(0.01) for i, size in enumerate(tables)}
    config = DLRMConfig(bottom=(64,), top=(64,))
    with torch.random.fork_rng(devices=()):
        return dlrm_step.Training(tables, batches, config=config, weights=weights, seed=seed)
