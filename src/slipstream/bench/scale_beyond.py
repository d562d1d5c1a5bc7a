"""Cost of a step on tables in files that are larger than the machine's memory, against tables that fit.

The files are filled with numbers (a hole would be read without the disk). Where they exceed memory every series begins
with nothing of them in it, and warms up for as many steps. Rows of popular values lie scattered over the tables, as a
vocabulary in order of first sight scatters them. Writing back is part of the cost: what the kernel has not written when
the steps end is flushed, by the clock.
"""

from __future__ import annotations

import gc
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slipstream.bench import BenchOptions, dlrm_step, workload
from slipstream.bench.rounds import row
from slipstream.bench.scale_options import ScaleOptions
from slipstream.bench.scale_tables import fill_file
from slipstream.embedding import FROZEN, OPEN
from slipstream.embedding.memory import advise_read_around, empty_table, installed_memory, let_go, mapped_table
from slipstream.errors import ConfigError
from slipstream.models import DLRMConfig

DIM = 64
FEATURES = 8
BEYOND, FITS = 1.1, 1 / 16
"""Bytes of the tables ÷ memory of the machine."""
QUICK_BYTES = 48 << 20
"""Bytes of the larger tables with ``quick``, which fit everywhere."""
STEPS, WARM_UP = 24, 4
SECONDS = 16.0
"""Of one series at one size; steps that would begin later are left out."""
BUDGETS: dict[str, float] = {"all rows updated": 1.0, "PSSE 0.9": 0.9, "PSSE 0.5": 0.5}
"""Series, with the share of the accesses whose rows are updated."""
READ_AROUND = "all rows updated, read-around"
"""Series in which the system reads around each page that is missing, as it does unless it is told otherwise."""
_SPARE = 1 << 30
"""Bytes that are left free on the disk."""


def beyond(options: BenchOptions, wanted: ScaleOptions, folder: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Lookup with row update (row-wise Adagrad, 8 features), by the rows that are gated, and a DLRM step.

    PSSE's gates are those that it arrives at once it has counted long enough: open for the most popular rows that hold
    its budget of the accesses.

    Raises:
        ConfigError: The disk has no room for the tables.
    """
    memory = installed_memory()
    larger = QUICK_BYTES if options.quick else int(memory * BEYOND)
    smaller = QUICK_BYTES // 4 if options.quick else int(memory * FITS)
    _check_room(folder, larger)
    found: list[dict[str, Any]] = []
    for size in (smaller, larger):
        with _tables(folder, size, read_around=size < memory) as tables:
            found += _measured(tables, "file", memory, options)
    count = _rows_of(smaller)
    ready = _Tables([empty_table(count, DIM).fill_(0.01) for _ in range(FEATURES)], [])
    found += _measured(ready, "memory", memory, options)
    return found, {"beyond: bytes of the larger tables ÷ memory": round(larger / memory, 4)}


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + _SPARE:
        raise ConfigError(
            f"tables beyond memory take {size / 2**30:.1f} GiB, {folder} has {free / 2**30:.1f} GiB free",
            remedy="name a folder on a larger disk with --cache, or leave the part beyond out",
        )


class _Tables(NamedTuple):
    """Tables, and the files that they are in."""

    weights: list[Tensor]
    files: list[int]
    """Descriptors."""


@contextmanager
def _tables(folder: Path, size: int, *, read_around: bool) -> Iterator[_Tables]:
    """Filled tables in files that are gone afterwards, however the process ends: mapped, they need no name."""
    count = _rows_of(size)
    tables = _Tables([], [])
    with ExitStack() as stack:
        stack.callback(gc.collect)
        stack.callback(tables.weights.clear)
        for number in range(FEATURES):
            file = folder / f"beyond-{number}.table"
            stack.callback(file.unlink, missing_ok=True)
            fill_file(file, count * DIM * 4)
            tables.files.append(os.open(file, os.O_RDWR))
            stack.callback(os.close, tables.files[-1])
            tables.weights.append(mapped_table(file, count, DIM, read_around=read_around))
            file.unlink()
        yield tables


def _rows_of(size: int) -> int:
    """Rows of each table, if all take ``size`` bytes."""
    return size // (FEATURES * DIM * 4)


def _measured(tables: _Tables, where: str, memory: int, options: BenchOptions) -> list[dict[str, Any]]:
    """Rows of all series on these tables."""
    count = len(tables.weights[0])
    steps, before = (4, 1) if options.quick else (STEPS, WARM_UP)
    fits = FEATURES * count * DIM * 4 < memory
    series = ["in memory"]
    if where == "file":
        series = [*BUDGETS, "DLRM step", *([READ_AROUND] if options.quick or not fits else [])]
    popularity = Popularity(count, workload.ZIPF_EXPONENT)
    rng = np.random.default_rng(options.seed)
    batches = [popularity.draw(workload.BATCH_SIZE, rng) for _ in range((steps + before) * len(series))]
    training = dlrm_step.Training(
        [count] * FEATURES,
        batches,
        config=DLRMConfig(embedding_dim=DIM),
        weights={f"c{number}": weight for number, weight in enumerate(tables.weights)},
        seed=options.seed,
    )
    found: list[dict[str, Any]] = []
    step = 0
    for name in series:
        share = BUDGETS.get(name, 1.0)
        for table in training.collection.table_of.values():
            table.set_gate(popularity.gate(share) if share < 1.0 else None)
            table.lookups = table.skipped = 0
        if name == READ_AROUND:
            for weight in tables.weights:
                advise_read_around(weight, True)
        if options.quick or not fits:
            _forget(tables)
        run = training.step if name == "DLRM step" else training.embedding_step
        for number in range(step, step + before):
            run(number)
        _flush(tables.files)
        seconds, traffic = _timed(run, range(step + before, step + before + steps), tables.files)
        step += before + steps
        counted = training.collection.table_of.values()
        sizes = {
            "series": name if where == "file" else f"all rows updated, {where}",
            "size": FEATURES * count,
            "tables in": where,
            "fits in memory": fits,
            "accesses gated": round(sum(t.skipped for t in counted) / max(1, sum(t.lookups for t in counted)), 4),
        }
        found.append({**row("slipstream", [value / workload.BATCH_SIZE for value in seconds]), **sizes, **traffic})
    return found


def _timed(run: Any, numbers: range, files: Sequence[int]) -> tuple[list[float], dict[str, float]]:
    """Seconds of each step, its share of the flush at the end included; what went to and from the disk."""
    seconds: list[float] = []
    before, begin = _traffic(), perf_counter()
    for number in numbers:
        start = perf_counter()
        run(number)
        seconds.append(perf_counter() - start)
        if perf_counter() - begin > SECONDS:
            break
    after, start = _traffic(), perf_counter()
    _flush(files)
    flush = (perf_counter() - start) / len(seconds)
    mebibytes = {name: round((after[name] - before[name]) / 2**20 / len(seconds), 3) for name in after}
    return [value + flush for value in seconds], {**mebibytes, "flush seconds a step": round(flush, 6)}


def _forget(tables: _Tables) -> None:
    """Takes what is in memory of the files out of it, once it is written."""
    _flush(tables.files)
    for weight, file in zip(tables.weights, tables.files, strict=False):  # tables in memory have no files
        let_go(weight)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def _flush(files: Sequence[int]) -> None:
    for file in files:
        os.fsync(file)


def _traffic() -> dict[str, int]:
    """Bytes that this process had read from the disk, and that it made dirty, as Linux counts them; else nothing."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    counted = {name: int(value) for name, value in (line.split(": ") for line in lines)}
    return {"read MiB a step": counted["read_bytes"], "dirtied MiB a step": counted["write_bytes"]}


class Popularity:
    """Zipf's law over the rows of a table too large to list: P(rank k) ∝ ∫ x^-s over [k, k + 1].

    Args:
        rows: R.
        exponent: s, not 1.
    """

    def __init__(self, rows: int, exponent: float) -> None:
        self.rows, self._power = rows, 1.0 - exponent
        self._all = (rows + 1.0) ** self._power - 1.0
        # A step that meets every row once, and none soon after its neighbour.
        self._stride = next(n for n in range(max(1, int(rows * 0.618)), 2 * rows + 2) if math.gcd(n, rows) == 1)

    def draw(self, samples: int, rng: np.random.Generator) -> Tensor:
        """Ids, int32 ``[samples, FEATURES]``."""
        ranks = self._rank(rng.random((samples, FEATURES)))
        return torch.from_numpy(self.row(ranks).astype(np.int32))

    def row(self, ranks: Any) -> Any:
        """The rows of ranks from 0, int64."""
        return np.asarray(ranks, dtype=np.int64) * self._stride % self.rows

    def gate(self, share: float) -> Tensor:
        """Gates, uint8 ``[R]``: open for the most popular rows, which hold ``share`` of the accesses."""
        gate = torch.full((self.rows,), FROZEN, dtype=torch.uint8)
        gate[torch.from_numpy(self.row(np.arange(int(self._rank(share)) + 1)))] = OPEN
        return gate

    def _rank(self, share: Any) -> Any:
        """The rank from 0 up to which the rows hold a share of the accesses."""
        ranks = np.floor((1.0 + np.asarray(share) * self._all) ** (1.0 / self._power)).astype(np.int64) - 1
        return np.minimum(ranks, self.rows - 1)
