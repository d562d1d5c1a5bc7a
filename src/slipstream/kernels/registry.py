"""The one place that picks a back end.

======================  ==========================================================
float32 on the CPU      ``cpu`` (Numba)
everything else         ``reference`` (plain PyTorch): slower, and said once
======================  ==========================================================

A GPU back end (``cuda``) will be named in :func:`_backend`. The lookups are ``torch.library`` operators in
``embedding/operators.py``, where backward knows the tables; the update runs in ``optimizer.step()``, outside of any
compiled graph, and is a plain function.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from slipstream.kernels import classify, cpu, cpu_pairs, reference
from slipstream.kernels import scout as scout_kernel
from slipstream.kernels.hashing import hash_uniform
from slipstream.kernels.parallel import SlowPathWarning, threading_layer
from slipstream.kernels.types import Lookups, RowGradients, TableState, UpdateCounts, UpdateSettings

__all__ = [
    "backend_name",
    "count",
    "count_marked",
    "hash_lookups",
    "hash_uniform",
    "pack_pairs",
    "pool",
    "row_update",
    "scout",
    "threading_layer",
    "unpack_pairs",
]


@cache
def _say_slow(device: str, dtype: torch.dtype) -> None:
    warnings.warn(
        f"tables of {dtype} on {device} run on the reference kernels, which are slow; float32 on the CPU is fast",
        SlowPathWarning,
        stacklevel=4,
    )


def _backend(tensor: Tensor) -> ModuleType:
    if tensor.device.type == "cpu" and tensor.dtype == torch.float32:
        return cpu
    _say_slow(tensor.device.type, tensor.dtype)
    return reference


def backend_name(tensor: Tensor) -> str:
    """``cpu`` or ``reference``: what a table like ``tensor`` runs on."""
    return _backend(tensor).__name__.rpartition(".")[2]


def pool(weights: Sequence[Tensor], lookups: Lookups, out_dtype: torch.dtype = torch.float32) -> Tensor:
    """Gather rows and sum them by bag: [B, F, D]. See :func:`slipstream.kernels.reference.pool`."""
    return _backend(weights[0]).pool(weights, lookups, out_dtype)


def row_update(
    tables: Sequence[TableState], gradients: Sequence[RowGradients], settings: UpdateSettings
) -> UpdateCounts:
    """Gate, de-duplicate, reduce, apply the optimizer, write. See :func:`slipstream.kernels.reference.row_update`."""
    return _backend(tables[0].weight).row_update(tables, gradients, settings)


def count(counts: Tensor, ids: Tensor, amount: float) -> None:
    """Add ``amount`` to ``counts[id]`` for each id. See :func:`slipstream.kernels.reference.count`."""
    _backend(counts).count(counts, ids, amount)


def pack_pairs(square: Tensor) -> Tensor:
    """Lower triangles of float32 matrices on the CPU. See :func:`slipstream.kernels.reference.pack_pairs`."""
    return cpu_pairs.pack_pairs(square)


def unpack_pairs(pairs: Tensor, count: int) -> Tensor:
    """Symmetric float32 matrices on the CPU. See :func:`slipstream.kernels.reference.unpack_pairs`."""
    return cpu_pairs.unpack_pairs(pairs, count)


def count_marked(marks: Sequence[Tensor], ids: Tensor, bags: Sequence[tuple[Tensor, Tensor]] = ()) -> Tensor:
    """How many lookups of each input hit marked rows. See :func:`slipstream.kernels.reference.count_marked`."""
    return (classify if ids.device.type == "cpu" else reference).count_marked(marks, ids, bags)


def hash_lookups(ids: Tensor, bags: Sequence[tuple[Tensor, Tensor]], bits: int) -> tuple[Tensor, Tensor]:
    """Slots of the lookups of each input. See :func:`slipstream.kernels.scout.hash_lookups`."""
    return scout_kernel.hash_lookups(ids, bags, bits)


def scout(
    table: Tensor, slots: Tensor, starts: Tensor, dense: Tensor, labels: Tensor, learn: Tensor | None, lr: float
) -> tuple[Tensor, Tensor, float]:
    """Logistic regression on-line. See :func:`slipstream.kernels.reference.scout`."""
    return scout_kernel.scout(table, slots, starts, dense, labels, learn, lr)
