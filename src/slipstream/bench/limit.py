"""Against the limit: the row update and a whole DLRM step, measured ÷ what this machine's memory and products allow.

Rates are measured first (:mod:`slipstream.bench.probe`): STREAM copy, random rows read and written back, matrix
products at the model's shapes. Bytes and operations come from :mod:`slipstream.bench.bounds`. A bound is

    update: streamed bytes / copy rate + scattered bytes / random-row rate
    step:   Σ seconds of its matrix products + streamed bytes / copy rate + scattered bytes / random-row rate

each at its own best, nothing overlapping; arithmetic beside the products, the hash table, Python and the framework
count nothing. ``stream bound`` charges the scattered bytes too at the copy rate, as if rows lay in order.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slipstream.bench import BenchOptions, bounds, dlrm_step, probe, workload
from slipstream.bench.rounds import compete, row
from slipstream.embedding.memory import empty_table, zeros_like_table
from slipstream.kernels import registry
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableSet, TableState, UpdateSettings
from slipstream.report.record import Record

TOTAL_ROWS = 3_000_000
"""Rows of all tables: at dimension 16 they are six times the last cache of a large processor, at 128 with Adam they
take 4.6 GB."""
DIMS = (16, 64, 128)
FEATURES = 26
GRADIENT_BYTES = 96 << 20
"""Gradients taken in turn, so that none is still in a cache when its turn comes."""
FROM_MEMORY, AFTER_BACKWARD = "in memory", "just written"
"""Where a gradient lies when the update begins: the bound is of the first, the second is what a training has."""
_RULES = {
    "sgd": Rule.SGD,
    "rowwise_adagrad": Rule.ROWWISE_ADAGRAD,
    "adagrad": Rule.ADAGRAD,
    "adam": Rule.ADAM,
}
_KAGGLE = bounds.Shape(workload.BATCH_SIZE, dlrm_step.NUM_DENSE, (512, 256, 64), (512, 256), FEATURES, 16)


@dataclass(slots=True)
class _Rates:
    """Bytes a second."""

    copy: dict[int, float]
    """By threads."""
    rows: dict[tuple[int, int], float]
    """Of reading and writing back random rows, by dimension and threads."""
    gather: dict[tuple[int, int], float]
    """Of ``torch.index_select``, by dimension and threads; for comparison."""

    def bound(self, moved: bounds.Moved, dim: int, threads: int) -> float:
        """Seconds."""
        return moved.seconds(self.copy[threads], self.rows[dim, threads])

    def stream_bound(self, moved: bounds.Moved, threads: int) -> float:
        """Seconds if everything lay in order."""
        return moved.seconds(self.copy[threads], self.copy[threads])


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``quick`` shrinks the tables to 400,000 rows, leaves out dimension 128 and takes few rounds; figures
            then are of caches rather than of memory.

    Returns:
        ``ratios``: measured ÷ bound, 1 being the limit: ``update_<optimizer>_dim16/bound`` … of the kernel's call, with
        ``_one_thread``, and with ``_after_backward``: the gradient just written and so partly in a cache, as in a
        training, where the bound has it read from memory; ``step_float32/bound`` and ``step_bf16_compile/bound``.
        ``quality``: the rates, in GB/s and GFLOP/s. ``points``: the bytes, and each product with its rate.
    """
    every = torch.get_num_threads()
    counts = tuple(dict.fromkeys((1, every)))
    total = 400_000 if options.quick else TOTAL_ROWS
    rows = workload.cardinalities(total)
    batches = workload.zipf_batches(rows, batches=8 if options.quick else 32, seed=options.seed)
    unique = _distinct(batches)
    record = Record(
        name="limit",
        dataset=workload.describe(rows),
        conditions={
            "quick": options.quick,
            "batch_size": workload.BATCH_SIZE,
            "lookups": workload.BATCH_SIZE * FEATURES,
            "distinct_rows": unique,
            "threads": every,
            "ratios": "median of the measured time ÷ bound: 1 is the limit, above is slower",
            "model": "DLRM, bottom 13-512-256-64-16, top 512-256-1, 26 tables, row-wise Adagrad",
            **workload.shares(batches),
        },
    )
    rates = _Rates({}, {}, {})
    dims = DIMS[:2] if options.quick else DIMS
    _measure_rates(rates, dims, counts, options)
    for dim in dims:
        _updates(record, rates, dim, rows, batches, unique, counts, options)
        gc.collect()
    _steps(record, rates, rows, batches, unique, every, options)
    _note_rates(record, rates, every)
    return record


def _distinct(batches: Sequence[Tensor]) -> int:
    """Distinct rows of a batch over all tables, on average."""
    return round(float(np.mean([sum(len(column.unique()) for column in batch.T) for batch in batches])))


def _measure_rates(rates: _Rates, dims: Sequence[int], counts: Sequence[int], options: BenchOptions) -> None:
    size = (32 if options.quick else 256) << 20
    for threads in counts:
        rates.copy[threads] = probe.copy_rate(size, threads)
    for dim in dims:
        table = empty_table((128 << 20 if options.quick else 1 << 30) // (4 * dim), dim).fill_(1.0)
        for threads in counts:
            rates.rows[dim, threads] = probe.random_row_rate(table, threads, seed=options.seed)
            rates.gather[dim, threads] = probe.gather_rate(table, threads, seed=options.seed)


def _updates(
    record: Record,
    rates: _Rates,
    dim: int,
    rows: Sequence[int],
    batches: Sequence[Tensor],
    unique: int,
    counts: Sequence[int],
    options: BenchOptions,
) -> None:
    """Times the kernel of each optimizer at one row size."""
    weights = [empty_table(count, dim).fill_(0.01) for count in rows]
    size = workload.BATCH_SIZE * FEATURES * dim * 4
    generator = torch.Generator().manual_seed(options.seed + dim)
    shape = (workload.BATCH_SIZE, FEATURES, dim)
    grads = [torch.randn(shape, generator=generator) / shape[0] for _ in range(-(-GRADIENT_BYTES // size))]
    for optimizer, rule in _RULES.items():
        call = _update(optimizer, rule, weights, batches, grads)
        moved = bounds.update_bytes(optimizer, dim, workload.BATCH_SIZE * FEATURES, unique)
        record.points.append({"update": optimizer, "dim": dim, **moved._asdict()})
        for (where, threads), seconds in _timed(call, grads, len(batches), counts, options).items():
            bound, streamed = rates.bound(moved, dim, threads), rates.stream_bound(moved, threads)
            key = f"update_{optimizer}_dim{dim}{'' if threads == counts[-1] else '_one_thread'}"
            key = key if where == FROM_MEMORY else f"{key}_after_backward"
            record.ratios[f"{key}/bound"] = round(float(np.median(seconds)) / bound, 3)
            shown = {"dim": dim, "threads": threads, "gradient": where, "bound": bound, "stream bound": streamed}
            record.rows.append(row(f"update {optimizer}", seconds, **shown))


def _timed(
    call: Callable[[int], object],
    grads: Sequence[Tensor],
    batches: int,
    counts: Sequence[int],
    options: BenchOptions,
) -> dict[tuple[str, int], list[float]]:
    """Seconds a call in turns, by where the gradient lies and threads."""
    for number in range(batches):  # pages of state are touched, the kernel is compiled
        call(number)
    seconds: dict[tuple[str, int], list[float]] = {(w, t): [] for t in counts for w in (FROM_MEMORY, AFTER_BACKWARD)}
    number = 0
    for _ in range(4 if options.quick else 80):
        for (where, threads), spent in seconds.items():
            with probe.threads_of(threads):
                for _ in range(2):
                    number += 1
                    if where == AFTER_BACKWARD:
                        grads[number % len(grads)].mul_(1.0)  # reads and writes it, as who computes it does
                    start = perf_counter()
                    call(number)
                    spent.append(perf_counter() - start)
    return seconds


def _update(
    optimizer: str, rule: Rule, weights: Sequence[Tensor], batches: Sequence[Tensor], grads: Sequence[Tensor]
) -> Callable[[int], object]:
    """The kernel's call on a batch, as an optimizer makes it."""
    states = [
        [zeros_like_table(weight, rowwise=size == 4) for size in bounds.state_bytes(optimizer, weight.shape[1])]
        for weight in weights
    ]
    tables = TableSet(
        TableState(weight, *state, seed=number)
        for number, (weight, state) in enumerate(zip(weights, states, strict=True))
    )
    every = tuple(range(len(weights)))
    lookups = [Lookups(ids, None, len(weights)) for ids in batches]
    settings = UpdateSettings(rule, step=10, lr=1e-3, eps=1e-8, beta1=0.9 if rule == Rule.ADAM else 0.0, beta2=0.999)

    def call(number: int) -> object:
        grad = grads[number % len(grads)]
        return registry.row_update(tables, [RowGradients(lookups[number % len(lookups)], grad, every)], settings)

    return call


def _steps(
    record: Record,
    rates: _Rates,
    rows: Sequence[int],
    batches: Sequence[Tensor],
    unique: int,
    threads: int,
    options: BenchOptions,
) -> None:
    """Times whole steps in float32 and in bf16, and the products that each is made of."""
    systems = {
        "float32": dlrm_step.Training(rows, batches, seed=options.seed),
        "bf16_compile": dlrm_step.Training(rows, batches, bf16=True, seed=options.seed),
    }
    seconds = compete(
        {name: system.step for name, system in systems.items()},
        rounds=3 if options.quick else 30,
        steps_per_round=2,
        warm_up=2,
    )
    moved = bounds.step_bytes(_KAGGLE, "rowwise_adagrad", unique)
    memory = rates.bound(moved, _KAGGLE.dim, threads)
    record.points.append({"step": "float32", "dim": _KAGGLE.dim, **moved._asdict()})
    products = bounds.products(_KAGGLE)
    operations = sum(product.operations for product in products)
    for name, dtype in (("float32", torch.float32), ("bf16_compile", torch.bfloat16)):
        each = [
            probe.product_seconds(p.m, p.k, p.n, dtype, batch=p.batch, trials=3 if options.quick else 12)
            for p in products
        ]
        bound = sum(each) + memory
        record.ratios[f"step_{name}/bound"] = round(float(np.median(seconds[name])) / bound, 3)
        record.quality[f"GFLOP/s of the step's products, {dtype}".replace("torch.", "")] = round(
            operations / sum(each) / 1e9, 1
        )
        shown: dict[str, Any] = {"dim": _KAGGLE.dim, "threads": threads, "bound": bound, "bound of products": sum(each)}
        record.rows.append(row(f"step {name}", seconds[name], **shown))
        record.points += [
            {
                "product": p.what,
                "m": p.m,
                "k": p.k,
                "n": p.n,
                "batch": p.batch,
                "dtype": str(dtype).removeprefix("torch."),
            }
            | {"seconds": spent, "GFLOP/s": round(p.operations / spent / 1e9, 1)}
            for p, spent in zip(products, each, strict=True)
        ]
    record.conditions["operations_of_a_step"] = operations


def _note_rates(record: Record, rates: _Rates, every: int) -> None:
    for threads, rate in rates.copy.items():
        record.quality[f"GB/s copy, threads {threads}"] = round(rate / 1e9, 2)
    for (dim, threads), rate in rates.rows.items():
        record.quality[f"GB/s random rows of {dim} read and written, threads {threads}"] = round(rate / 1e9, 2)
    for (dim, threads), rate in rates.gather.items():
        if threads == every:
            record.quality[f"GB/s index_select of rows of {dim}, threads {threads}"] = round(rate / 1e9, 2)
