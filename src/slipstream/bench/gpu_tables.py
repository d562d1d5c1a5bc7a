"""Forward, backward and update of the tables alone, on a GPU: ours, the peers', and the memory's bound."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slipstream import optim
from slipstream.bench.gpu import Bench, timed
from slipstream.bench.gpu_systems import LEARNING_RATE, FbgemmTables, MakeOptimizer, Ours, TorchTables
from slipstream.bench.gpu_workload import scaled
from slipstream.bench.systems import EPS, MissingPeer

DENSE_ROWS = 2_000_000
"""Rows of all tables for torch's dense gradients, which pass over all of them in every step."""
SETTINGS: dict[str, Any] = {"lr": LEARNING_RATE, "eps": EPS}


class _Tables(NamedTuple):
    rows: Sequence[int]
    dim: int
    ids: list[Tensor]
    grads: list[Tensor]


class _Rule(NamedTuple):
    """An optimizer, ours and a peer's."""

    name: str
    make: MakeOptimizer
    state: int
    """Elements of its state a row, as ours has it."""
    peer: str
    make_peer: Callable[[_Tables], Any]


def _rules(dim: int) -> tuple[_Rule, ...]:
    return (
        _Rule(
            "Adam", lambda p: optim.Adam(p, **SETTINGS), 2 * dim,
            "sparse_adam", lambda t: TorchTables(*t, make=lambda p: torch.optim.SparseAdam(p, **SETTINGS)),
        ),
        _Rule(
            "Adagrad", lambda p: optim.Adagrad(p, **SETTINGS), dim,
            "torch_adagrad", lambda t: TorchTables(*t, make=lambda p: torch.optim.Adagrad(p, **SETTINGS)),
        ),
        _Rule("RowwiseAdagrad", lambda p: optim.RowwiseAdagrad(p, **SETTINGS), 1, "fbgemm", lambda t: FbgemmTables(*t)),
    )  # fmt: skip


def embeddings(bench: Bench, dim: int, size: int) -> None:
    """Forward, backward and update of the tables alone, ours and the peers'."""
    key, limit = f"dim{dim}_batch{size}", bench.limit(8)
    for rule in _rules(dim):
        tables = _tables(bench, dim, size, bench.rows(dim, rule.state))
        distinct = sum(len(column.unique()) for column in tables.ids[0].T)
        lookups = tables.ids[0].numel()
        bench.record.conditions[f"rows_{rule.name}_dim{dim}"] = sum(tables.rows)
        bench.record.conditions[f"distinct_rows_per_lookup_{rule.name}_{key}"] = round(distinct / lookups, 4)
        found: dict[str, float] = {}
        for suffix in ("", " gated"):
            with held(lambda t=tables, r=rule: Ours(*t, r.make, bench.plan.device)) as system:
                if suffix:
                    system.gate(tables.rows)
                seconds = timed(bench, system.step, limit)
            found[suffix] = bench.note(f"slipstream {rule.name}{suffix}", seconds, dim=dim, batch_size=size)
        moved = 4 * (2 * lookups * dim + 3 * distinct * dim + 2 * distinct * rule.state)
        bench.record.ratios[f"bound_{rule.name}_{key}"] = found[""] / (moved / bench.bandwidth)
        bench.record.ratios[f"gates_{rule.name}_{key}"] = found[""] / found[" gated"]
        try:
            with held(lambda t=tables, r=rule: r.make_peer(t)) as system:
                theirs = bench.note(rule.peer, timed(bench, system.step, limit), dim=dim, batch_size=size)
        except (MissingPeer, torch.OutOfMemoryError) as error:
            bench.record.conditions[f"missing_{rule.peer}_{key}"] = str(error).splitlines()[0]
            continue
        bench.record.ratios[f"{rule.peer}_{key}"] = theirs / found[""]
        bench.record.ratios[f"{rule.peer}_gated_{key}"] = theirs / found[" gated"]


def dense(bench: Bench, dim: int, size: int) -> None:
    """Against torch's dense gradients, on tables small enough for them."""
    tables = _tables(bench, dim, size, scaled(min(DENSE_ROWS, bench.plan.most_rows)))
    limit = bench.limit(2)
    with held(lambda: Ours(*tables, lambda p: optim.Adagrad(p, **SETTINGS), bench.plan.device)) as system:
        ours = bench.note("slipstream Adagrad, small tables", timed(bench, system.step, limit), dim=dim)
    with held(lambda: TorchTables(*tables, lambda p: torch.optim.Adagrad(p, **SETTINGS), sparse=False)) as system:
        theirs = bench.note("torch dense Adagrad, small tables", timed(bench, system.step, limit), dim=dim)
    bench.record.conditions["rows_dense"] = sum(tables.rows)
    bench.record.ratios[f"torch_dense_dim{dim}_batch{size}"] = theirs / ours


def _tables(bench: Bench, dim: int, size: int, rows: tuple[int, ...]) -> _Tables:
    return _Tables(rows, dim, *bench.batches(rows, dim, size))


@contextmanager
def held(make: Callable[[], Any]) -> Generator[Any]:
    """A system while it is measured; its memory is free afterwards."""
    system = None
    try:
        system = make()
        yield system
    finally:
        if system is not None:
            vars(system).clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
