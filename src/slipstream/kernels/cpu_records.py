"""Puts what a call works on into the records that the CPU workers read: addresses, sizes, strides, settings."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slipstream.errors import UnsupportedOption
from slipstream.kernels.bounds import checked_offsets
from slipstream.kernels.cpu_lookups import BLOCK_FIELDS, TABLE_FIELDS
from slipstream.kernels.hashing import SEED_FACTOR, stream
from slipstream.kernels.signal import TRAIL_LANES
from slipstream.kernels.types import (
    NO_PADDING,
    DrawnLookups,
    Lookups,
    RowGradients,
    Rule,
    TableSet,
    TableState,
    UpdateSettings,
)

_MASK = 0xFFFFFFFFFFFFFFFF
_NOT_CONTIGUOUS = "the rows of a table, its state or its gate are not contiguous in memory"
_MAKE_CONTIGUOUS = "set weight.data = weight.data.contiguous()"
_GIVE_TRAIL = "set its trail to zeros, float32 [rows, 5]"


def integer(ids: Tensor) -> Tensor:
    """Ids as the workers read them, int32 or int64."""
    return ids if ids.dtype in (torch.int32, torch.int64) else ids.to(torch.int64)


def wide_offsets(lookups: Lookups) -> Tensor | None:
    """Offsets as contiguous int64, checked: they must rise from 0 or more to N at most."""
    if lookups.offsets is None:
        return None
    return checked_offsets(lookups.offsets, lookups.ids.numel())


def assign_blocks(tables: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Sort blocks by table and note each table's range; returns them, the most lookups of a table, and all lookups."""
    count = len(tables)
    each = np.arange(count)
    owners = blocks[:, -1].tolist()
    if owners == list(range(count)):  # one forward pass of all tables: nearly always
        lookups = blocks[:, -2].tolist()
        tables[:, 7], tables[:, 8] = each, each + 1
        return blocks, max(lookups), sum(lookups)
    blocks = blocks[np.argsort(owners, kind="stable")]
    tables[:, 7] = np.searchsorted(blocks[:, -1], each, side="left")
    tables[:, 8] = np.searchsorted(blocks[:, -1], each, side="right")
    per_table = np.bincount(blocks[:, -1], weights=blocks[:, -2], minlength=count)
    return blocks, int(per_table.max()), int(per_table.sum())


def at(array: Any) -> int:
    """Address of an ndarray's first element, 0 of none; in a third of the time of ``array.ctypes.data``."""
    return ctypes.addressof(ctypes.c_byte.from_buffer(array)) if array.size else 0


def feature_records(weights: Sequence[Tensor], lookups: Lookups) -> np.ndarray:
    """int64 [F, 4]: address and rows of each feature's table, its padding row."""
    dim = weights[0].size(1)
    for weight in weights:
        if weight.dtype != torch.float32 or weight.size(1) != dim:
            raise UnsupportedOption(
                f"tables of one call have rows of {dim} float32, one has rows of {weight.size(1)} {weight.dtype}",
                remedy="look tables of another kind up apart",
            )
        if not weight.is_contiguous():
            raise UnsupportedOption(_NOT_CONTIGUOUS, remedy=_MAKE_CONTIGUOUS)
    features = np.empty((len(weights), 4), np.int64)
    features[:, 0] = [weight.data_ptr() for weight in weights]
    features[:, 1] = [weight.size(0) for weight in weights]
    features[:, 2] = lookups.padding_rows()
    return features


def table_records(tables: Sequence[TableState]) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The tables as the worker reads them, int64 [T, fields], the largest first; and their scales, float32 [T].

    The first two are kept in a TableSet.
    """
    prepared = tables.prepared if isinstance(tables, TableSet) else None
    if prepared is None:
        records = np.zeros((len(tables), len(TABLE_FIELDS)), np.int64)
        for record, t in zip(records, tables, strict=True):
            _check_state(t)
            record[0], record[1], record[2], record[3] = (
                t.weight.data_ptr(),
                len(t.weight),
                _address(t.first),
                _address(t.second),
            )
            record[4], record[5] = _address(t.gate), _address(t.last_step)
            record[9], record[10], record[11] = _address(t.signal), _address(t.trail), t.by_sample
        records[:, 6] = np.array([(t.seed * SEED_FACTOR) & _MASK for t in tables], dtype=np.uint64).view(np.int64)
        # Work on a large table takes longest: begun last, it would leave the other threads idle.
        prepared = records, np.argsort(-records[:, 1], kind="stable")
        if isinstance(tables, TableSet):
            tables.prepared = prepared
    return prepared, np.array([float(t.scale) for t in tables], dtype=np.float32)


def _check_state(table: TableState) -> None:
    """The kernel trusts what it is given: everything per row must have the table's rows, in the right type."""
    whole, rows = tuple(table.weight.shape), tuple(table.weight.shape[:1])
    for name, tensor, dtype, shapes in (
        ("weight", table.weight, torch.float32, (whole,)),
        ("first state", table.first, torch.float32, (whole, rows)),
        ("second state", table.second, torch.float32, (whole,)),
        ("gate", table.gate, torch.uint8, (rows,)),
        ("last_step", table.last_step, torch.int32, (rows,)),
        ("signal", table.signal, torch.uint16, (rows,)),
        ("trail", table.trail, torch.float32, ((*rows, TRAIL_LANES + 1),)),
    ):
        if tensor is None:
            continue
        if tensor.dtype != dtype or tuple(tensor.shape) not in shapes:
            raise UnsupportedOption(
                f"{name} of a table with weight {whole} is {tensor.dtype} {tuple(tensor.shape)}",
                remedy=f"it must be {dtype} {shapes[0]}; load the state of a table of the same size",
            )
        if not tensor.is_contiguous():
            raise UnsupportedOption(_NOT_CONTIGUOUS, remedy=_MAKE_CONTIGUOUS)
    if table.signal is not None and table.second is None and table.trail is None:
        raise UnsupportedOption("a table has a signal but neither a second moment nor a trail", remedy=_GIVE_TRAIL)


def settings_fields(s: UpdateSettings) -> dict[str, float]:
    """The settings of an update as the worker's arguments name them."""
    step_size = s.lr * (1 - s.beta2**s.step) ** 0.5 / (1 - s.beta1**s.step) if s.rule == Rule.ADAM else 0.0
    return {
        "step": s.step,
        "step_hash": stream(s.step, 0),
        "decoupled": s.decoupled,
        "lr": s.lr,
        "eps": s.eps,
        "beta1": s.beta1,
        "beta2": s.beta2,
        "one_minus_beta1": 1 - s.beta1,
        "one_minus_beta2": 1 - s.beta2,
        "weight_decay": s.weight_decay,
        "shrink": 1 - s.lr * s.weight_decay,
        "step_size": step_size,
    }


def packed(dtype: np.dtype[Any], **fields: float) -> np.ndarray:
    """One record [1] of a structured type; at once, since its fields one by one cost more than a small kernel."""
    return np.array([tuple([fields[name] for name in dtype.names or ()])], dtype)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def block_records(gradients: Sequence[RowGradients], dim: int) -> tuple[np.ndarray, list[Tensor]]:
    """One record a feature and forward pass, and the tensors that must live as long.

    The last two columns are the number of lookups and the table.
    """
    alive: list[Tensor] = []
    parts: list[np.ndarray] = []
    for block in gradients:
        lookups, grad = block.lookups, block.grad
        size, count = lookups.batch_size, lookups.num_features
        if tuple(grad.shape) != (size, count, dim) or len(block.tables) != count:
            raise UnsupportedOption(
                f"a gradient {tuple(grad.shape)} of {len(block.tables)} tables for lookups {(size, count, dim)}",
                remedy="pass the gradient of what pool returned, and one table for each feature",
            )
        if grad.dtype != torch.float32 or grad.stride(2) != 1:
            grad = grad.to(torch.float32).contiguous()
        if isinstance(lookups, DrawnLookups):
            if not lookups.ids.numel():  # an empty tensor has no address, by which the worker knows drawn lookups
                continue
            out = _drawn_records(lookups, grad, block.tables)
            parts.append(out if min(block.tables) >= 0 else out[out[:, -1] >= 0])
            alive += [lookups.ids, lookups.samples, lookups.factors, grad]
            continue
        ids = integer(lookups.ids)
        offsets = wide_offsets(lookups)
        if offsets is None:
            strides = (*ids.stride(), *grad.stride())
            out = _one_hot_template(size, count, ids.element_size(), strides, lookups.padding, block.tables).copy()
            out[:, 0] += ids.data_ptr()
            out[:, 5] += grad.data_ptr()
        else:
            out = np.zeros((count, len(BLOCK_FIELDS)), np.int64)
            feature = np.arange(count)
            ids = ids.contiguous()
            out[:, 0], out[:, 2] = ids.data_ptr(), 1
            out[:, 3] = offsets.data_ptr() + feature * (size * 8)
            out[:, -2] = np.diff(offsets.numpy()[:: max(size, 1)]) if size else 0
            if lookups.sample_weights is not None:
                sample_weights = lookups.sample_weights.detach().to(torch.float32).contiguous()
                if sample_weights.numel() != ids.numel():
                    raise UnsupportedOption(f"{sample_weights.numel()} sample weights for {ids.numel()} ids")
                out[:, 7] = sample_weights.data_ptr()
                alive.append(sample_weights)
            out[:, 8] = lookups.mean
            alive.append(offsets)
            out[:, 1], out[:, 4] = ids.dtype == torch.int64, size
            out[:, 5], out[:, 6] = grad.data_ptr() + feature * (grad.stride(1) * 4), grad.stride(0)
            out[:, 9] = lookups.padding_rows()
            out[:, -1] = block.tables
        parts.append(out if min(block.tables) >= 0 else out[out[:, -1] >= 0])
        alive += [ids, grad]
    if len(parts) == 1:
        return parts[0], alive
    return np.concatenate(parts) if parts else np.zeros((0, len(BLOCK_FIELDS)), np.int64), alive


def _drawn_records(lookups: DrawnLookups, grad: Tensor, tables: tuple[int, ...]) -> np.ndarray:
    out = np.zeros((lookups.num_features, len(BLOCK_FIELDS)), np.int64)
    firsts = np.array(lookups.firsts, np.int64)
    out[:, 0], out[:, 10] = lookups.ids.data_ptr() + 8 * firsts, lookups.samples.data_ptr() + 8 * firsts
    out[:, 7] = lookups.factors.data_ptr() + 4 * firsts
    out[:, 1], out[:, 4] = 1, lookups.batch_size
    out[:, 5] = grad.data_ptr() + np.arange(len(firsts)) * (grad.stride(1) * 4)
    out[:, 6] = grad.stride(0)
    out[:, -2], out[:, -1] = lookups.counts, tables
    return out


@lru_cache(maxsize=64)
def _one_hot_template(
    size: int,
    count: int,
    itemsize: int,
    strides: tuple[int, ...],
    padding: tuple[int, ...],
    tables: tuple[int, ...],
) -> np.ndarray:
    """The records of a block without offsets, with addresses counted from the first id and gradient."""
    out = np.zeros((count, len(BLOCK_FIELDS)), np.int64)
    feature = np.arange(count)
    out[:, 0], out[:, 1], out[:, 2] = feature * (strides[1] * itemsize), itemsize == 8, strides[0]
    out[:, 4], out[:, 5], out[:, 6] = size, feature * (strides[3] * 4), strides[2]
    out[:, 9] = [NO_PADDING if row < 0 else row for row in padding] if padding else NO_PADDING
    out[:, -2], out[:, -1] = size, tables
    return out
