"""What the machine can do at best: copying, reading and writing back random rows, multiplying matrices.

Each figure is the best of several trials, as STREAM reports it: a bound has to be one that the machine keeps to.
"""

# Numba compiles what pyright cannot follow: intrinsics take fewer arguments than their definitions show.
# pyright: basic, reportCallIssue=false, reportPrivateImportUsage=false, reportReturnType=false
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false, reportArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from time import perf_counter
from typing import Any

import numba
import numpy as np
import torch
from numba import carray, types
from torch import Tensor

from slipstream.embedding.memory import advise_huge_pages
from slipstream.kernels import parallel
from slipstream.kernels.intrinsics import fetch_add, load_i64, prefetch_write
from slipstream.kernels.row_ops import scale_row
from slipstream.kernels.sources import digest
from slipstream.report.machine import WITHOUT_BF16, instructions

LINE = 64
"""Bytes that memory moves at a time: a cache line."""
_BLOCK = 256
"""Rows that a thread takes at a time."""
_AHEAD = 16
"""Rows by which prefetching runs ahead."""
_ARGUMENTS = np.dtype(
    [(name, "i8") for name in ("counter", "rows", "count", "weight", "row_bytes")],
    align=True,
)
_RECORD = numba.from_dtype(_ARGUMENTS)


@contextmanager
def threads_of(threads: int) -> Iterator[None]:
    """Computes with so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def best_seconds(function: Callable[[], object], trials: int) -> float:
    """The shortest of several calls, after one that does not count."""
    function()
    shortest = float("inf")
    for _ in range(trials):
        start = perf_counter()
        function()
        shortest = min(shortest, perf_counter() - start)
    return shortest


def copy_rate(size: int, threads: int, *, trials: int = 8) -> float:
    """Bytes a second of ``b = a``, read and written bytes both counted (STREAM copy).

    Args:
        size: Bytes of each of the two arrays; far above the last cache for the memory's rate.
        threads: Threads to copy with.
        trials: The best of so many counts.
    """
    source = advise_huge_pages(torch.empty(size // 4)).fill_(1.0)
    target = advise_huge_pages(torch.empty(size // 4)).fill_(0.0)
    with threads_of(threads):
        return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), trials)


def random_row_rate(table: Tensor, threads: int, *, count: int = 200_000, trials: int = 5, seed: int = 0) -> float:
    """Bytes a second of reading, changing and writing back distinct random rows, known in advance.

    Rows are taken in a random order, the ones to come are prefetched, and nothing else is done: the most that an update
    of random rows could move. Whole cache lines count, once read and once written.

    Args:
        table: float32 [R, D], far larger than the caches.
        threads: Threads.
        count: Rows of a trial, at most R.
        trials: The best of so many counts; each has rows of its own, else they would come from a cache.
        seed: Of the order.
    """
    row_bytes = table.shape[1] * 4
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
    count = min(count, len(table) // (trials + 1))
    pieces = iter(order[: count * (trials + 1)].split(count))
    worker = _random_worker(table.shape[1])

    def turn() -> None:
        rows = next(pieces)
        counter = np.zeros(1, np.int64)
        arguments = np.zeros(1, _ARGUMENTS)
        record = arguments[0]
        record["counter"], record["rows"], record["count"] = counter.ctypes.data, rows.data_ptr(), len(rows)
        record["weight"], record["row_bytes"] = table.data_ptr(), row_bytes
        parallel.run(worker.address, arguments, threads)

    return 2 * lines(row_bytes) * LINE * count / best_seconds(turn, trials)


def lines(size: int) -> int:
    """Cache lines that an aligned piece of memory takes."""
    return -(-size // LINE)


@cache
def _random_worker(dim: int) -> Any:
    width = np.int64(dim)
    source_digest = digest()

    def worker(pointer: Any) -> None:
        _ = source_digest  # part of the cache's key
        a = carray(pointer, 1)[0]
        counter, rows, count, weight, row_bytes = a.counter, a.rows, a.count, a.weight, a.row_bytes
        while True:
            first = fetch_add(counter, 1) * _BLOCK
            if first >= count:
                break
            for i in range(first, min(first + _BLOCK, count)):
                if i + _AHEAD < count:
                    soon = weight + load_i64(rows, i + _AHEAD) * row_bytes
                    for line in range(0, row_bytes, 64):
                        prefetch_write(soon + line)
                scale_row(width, (weight + load_i64(rows, i) * row_bytes, np.float32(1.0)))

    return numba.cfunc(types.void(types.CPointer(_RECORD)), cache=True, error_model="numpy")(worker)


def gather_rate(table: Tensor, threads: int, *, count: int = 200_000, trials: int = 5, seed: int = 0) -> float:
    """Bytes a second of reading random rows into a new tensor by ``torch.index_select``, read and written counted."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(len(table), (count,), generator=generator) for _ in range(trials + 1)]
    turns = iter(ids)
    out = torch.empty(count, table.shape[1])
    with threads_of(threads):
        seconds = best_seconds(lambda: torch.index_select(table, 0, next(turns), out=out), trials)
    return (lines(table.shape[1] * 4) * LINE * count + out.nbytes) / seconds


def product_seconds(m: int, k: int, n: int, dtype: torch.dtype, *, batch: int = 0, trials: int = 8) -> float:
    """Seconds of an [m, k] by [k, n] product, by whichever of torch's two libraries is faster at it.

    Args:
        m: Rows of the first.
        k: Columns of the first.
        n: Columns of the second.
        dtype: float32 or bfloat16, of operands and result.
        batch: So many products at once; 0: one.
        trials: The best of so many counts.
    """
    shape = (batch,) if batch else ()
    left, right = torch.randn(*shape, m, k).to(dtype), torch.randn(*shape, n, k).to(dtype)
    out = torch.empty(*shape, m, n, dtype=dtype)
    if batch:
        return best_seconds(lambda: torch.bmm(left, right.transpose(1, 2), out=out), trials)
    seconds = best_seconds(lambda: torch.mm(left, right.T, out=out), trials)
    # oneDNN makes no products of bfloat16 where the processor has none.
    if torch.backends.mkldnn.is_available() and (dtype == torch.float32 or instructions() not in WITHOUT_BF16):
        product = torch.ops.mkldnn._linear_pointwise
        seconds = min(seconds, best_seconds(lambda: product(left, right, None, "none", [], ""), trials))
    return seconds
