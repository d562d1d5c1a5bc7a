"""The one place that picks a back end.

======================  ==========================================================
float32 on the CPU      ``cpu`` (Numba)
everything else         ``reference`` (plain PyTorch): slower, and said once
======================  ==========================================================

A GPU back end (``cuda``) will be named in :func:`_backend`. The lookups are ``torch.library`` operators in
``embedding/operators.py``, where backward knows the tables; the update runs in ``optimizer.step()``, outside of any
compiled graph, and is a plain function.
"""

# torch's decorators of operators are typed in part only.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from slipstream.kernels import classify, cpu, cpu_pairs, hashing, inputs, reference
from slipstream.kernels import scout as scout_kernel
from slipstream.kernels.parallel import SlowPathWarning, threading_layer
from slipstream.kernels.types import Lookups, RowGradients, TableState, UpdateCounts, UpdateSettings

__all__ = [
    "backend_name",
    "count",
    "count_marked",
    "has_pairs",
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


def hash_uniform(keys: Tensor, seed: int, step: int = 0) -> Tensor:
    """A number in [0, 1) for each key. See :func:`slipstream.kernels.hashing.hash_uniform`."""
    in_kernel = keys.device.type == "cpu" and keys.dtype in (torch.int32, torch.int64)
    return (inputs if in_kernel else hashing).hash_uniform(keys, seed, step)


def has_pairs(tensor: Tensor) -> bool:
    """Whether :func:`pack_pairs` and :func:`unpack_pairs` take it: float32 or bfloat16 on the CPU."""
    return tensor.device.type == "cpu" and tensor.dtype in cpu_pairs.DTYPES


@torch.library.custom_op("slipstream::pack_pairs", mutates_args=())
def _pack_pairs(square: Tensor) -> Tensor:
    return cpu_pairs.pack_pairs(square)


@_pack_pairs.register_fake
def _(square: Tensor) -> Tensor:
    count = square.shape[1]
    return square.new_empty((square.shape[0], count * (count - 1) // 2))


@torch.library.custom_op("slipstream::unpack_pairs", mutates_args=())
def _unpack_pairs(pairs: Tensor, count: int) -> Tensor:
    return cpu_pairs.unpack_pairs(pairs, count)


@_unpack_pairs.register_fake
def _(pairs: Tensor, count: int) -> Tensor:
    return pairs.new_empty((pairs.shape[0], count, count))


def pack_pairs(square: Tensor) -> Tensor:
    """Lower triangles of matrices. See :func:`has_pairs`, :func:`slipstream.kernels.reference.pack_pairs`."""
    # The operator is for compiled graphs: its dispatch costs more than a small batch.
    return _pack_pairs(square) if torch.compiler.is_compiling() else cpu_pairs.pack_pairs(square)


def unpack_pairs(pairs: Tensor, count: int) -> Tensor:
    """Symmetric matrices. See :func:`has_pairs`, :func:`slipstream.kernels.reference.unpack_pairs`."""
    return _unpack_pairs(pairs, count) if torch.compiler.is_compiling() else cpu_pairs.unpack_pairs(pairs, count)


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
