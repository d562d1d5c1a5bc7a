"""The CPU back end: puts tensors' addresses into argument records and runs the Numba workers. float32 tables."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from slipstream.errors import IndexOutOfRange, UnsupportedOption
from slipstream.kernels import cpu_pool, cpu_update, parallel, reference
from slipstream.kernels.bounds import checked_offsets
from slipstream.kernels.cpu_update import BLOCK_FIELDS, TABLE_FIELDS
from slipstream.kernels.hashing import SEED_FACTOR, stream
from slipstream.kernels.signal import TRAIL_LANES, corrections, is_measured
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableSet, TableState, UpdateCounts, UpdateSettings

SPECIALISED_DIMS = frozenset({4, 8, 16, 32, 48, 64, 96, 128, 192, 256})
"""Rows of these sizes get kernels of their own, the others share one whose loops have a variable length."""

SMALL = 4096
"""Lookups below which a second thread costs more than it saves."""

_MASK = 0xFFFFFFFFFFFFFFFF
_NOT_CONTIGUOUS = "the rows of a table, its state or its gate are not contiguous in memory"
_MAKE_CONTIGUOUS = "set weight.data = weight.data.contiguous()"
_GIVE_TRAIL = "set its trail to zeros, float32 [rows, 5]"


def _threads(lookups: int) -> int:
    return 1 if lookups < SMALL else torch.get_num_threads()


def _integer(ids: Tensor) -> Tensor:
    return ids if ids.dtype in (torch.int32, torch.int64) else ids.to(torch.int64)


def _wide_offsets(lookups: Lookups) -> Tensor | None:
    """Offsets as contiguous int64, checked: they must rise from 0 or more to N at most."""
    if lookups.offsets is None:
        return None
    return checked_offsets(lookups.offsets, lookups.ids.numel())


def pool(weights: Sequence[Tensor], lookups: Lookups, out_dtype: torch.dtype = torch.float32) -> Tensor:
    """See :func:`slipstream.kernels.reference.pool`; ``out_dtype`` float32 or bfloat16."""
    size, count, dim = lookups.batch_size, lookups.num_features, weights[0].shape[1]
    if len(weights) != count:
        raise UnsupportedOption(f"{len(weights)} tables for lookups of {count} features", remedy="pass one for each")
    out = torch.empty(size, count, dim, dtype=out_dtype)
    if out.numel() == 0:
        return out
    ids = _integer(lookups.ids)
    offsets = _wide_offsets(lookups)
    features = _feature_records(weights, lookups)
    counter = np.zeros(1, np.int64)
    arguments = np.zeros(1, cpu_pool.ARGUMENTS)
    record = arguments[0]
    record["counter"] = _at(counter)
    record["batch_size"], record["num_features"], record["dim"] = size, count, dim
    record["features"] = _at(features)
    record["ids"], record["wide_ids"] = ids.data_ptr(), ids.dtype == torch.int64
    if offsets is None:
        record["sample_stride"], record["feature_stride"] = ids.stride()
    else:
        ids = ids.contiguous()
        record["ids"], record["offsets"] = ids.data_ptr(), offsets.data_ptr()
        if lookups.sample_weights is not None:
            sample_weights = lookups.sample_weights.detach().to(torch.float32).contiguous()
            if sample_weights.numel() != ids.numel():
                raise UnsupportedOption(f"{sample_weights.numel()} sample weights for {ids.numel()} ids")
            record["sample_weights"] = sample_weights.data_ptr()
        record["mean"] = lookups.mean
    record["out"], record["out_bf16"] = out.data_ptr(), out_dtype == torch.bfloat16
    worker = cpu_pool.pool_worker(dim if dim in SPECIALISED_DIMS else 0)
    parallel.run(worker.address, arguments, _threads(ids.numel()))
    if record["bad"]:
        reference.pool(weights, lookups)  # raises with the place
    return out


def row_update(
    tables: Sequence[TableState], gradients: Sequence[RowGradients], settings: UpdateSettings
) -> UpdateCounts:
    """See :func:`slipstream.kernels.reference.row_update`.

    Lookups outside a table are left out, the rest is written, then IndexOutOfRange is raised.
    """
    dim = tables[0].weight.shape[1]
    blocks, alive = _blocks(gradients, dim)
    table_records, scales = _table_records(tables)
    blocks, most, total = _assign_blocks(table_records, blocks)
    threads = _threads(total)
    parts = 1
    # One part for norms: their sum over parts would depend on the number of threads.
    while settings.rule != Rule.NORM and threads > 1 and parts * len(tables) < 2 * threads:
        parts *= 2
    num_items = parts * len(tables)
    counter, counts, norms = np.zeros(1, np.int64), np.zeros((num_items, 4), np.int64), np.zeros(num_items)
    arguments = np.zeros(1, cpu_update.ARGUMENTS)
    record = arguments[0]
    record["counter"], record["num_items"], record["parts"] = _at(counter), num_items, parts
    record["tables"], record["scales"], record["blocks"] = _at(table_records), _at(scales), _at(blocks)
    record["max_lookups"], record["counts"], record["norms"] = most, _at(counts), _at(norms)
    _fill_settings(record, settings, dim)
    record["measured"] = is_measured(settings.step)
    if settings.rule == Rule.ADAM and record["measured"] and table_records[:, 9].any():
        factors = corrections(settings.beta1, settings.beta2)
        record["corrections"] = factors.data_ptr()
        alive.append(factors)
    worker = cpu_update.update_worker(int(settings.rule), dim if dim in SPECIALISED_DIMS else 0)
    parallel.run(worker.address, arguments, threads)
    del alive
    if parts > 1:
        counts = counts.reshape(len(tables), parts, 4).sum(axis=1)
        norms = norms.reshape(len(tables), parts).sum(axis=1)
    lookups, skipped, rows, outside = counts.T.tolist()
    if any(outside):
        table = next(i for i, number in enumerate(outside) if number)
        raise IndexOutOfRange(
            f"table {table} of the update: an id is outside its {tables[table].weight.shape[0]} rows",
            remedy="ids must not change between forward and optimizer.step()",
        )
    return UpdateCounts(lookups, skipped, rows, norms.tolist())


def _assign_blocks(table_records: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Sort blocks by table and note each table's range; returns them, the most lookups of a table, and all lookups."""
    count = len(table_records)
    owners, lookups = blocks[:, -1], blocks[:, -2]
    each = np.arange(count)
    if len(owners) == count and (owners == each).all():  # one forward pass of all tables: nearly always
        table_records[:, 7], table_records[:, 8] = each, each + 1
        return blocks, int(lookups.max()), int(lookups.sum())
    blocks = blocks[np.argsort(owners, kind="stable")]
    table_records[:, 7] = np.searchsorted(blocks[:, -1], each, side="left")
    table_records[:, 8] = np.searchsorted(blocks[:, -1], each, side="right")
    per_table = np.bincount(blocks[:, -1], weights=blocks[:, -2], minlength=count)
    return blocks, int(per_table.max()), int(per_table.sum())


def _at(array: np.ndarray) -> int:
    """Address of the first element."""
    return array.ctypes.data


def _feature_records(weights: Sequence[Tensor], lookups: Lookups) -> np.ndarray:
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


def _table_records(tables: Sequence[TableState]) -> tuple[np.ndarray, np.ndarray]:
    """The tables as the worker reads them, int64 [T, fields], and their scales, float32 [T]; kept in a TableSet."""
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
            record[9], record[10] = _address(t.signal), _address(t.trail)
        records[:, 6] = np.array([(t.seed * SEED_FACTOR) & _MASK for t in tables], dtype=np.uint64).view(np.int64)
        prepared = records
        if isinstance(tables, TableSet):
            tables.prepared = prepared
    return prepared, np.array([t.scale for t in tables], dtype=np.float32)


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


def _fill_settings(record: np.void, s: UpdateSettings, dim: int) -> None:
    record["dim"], record["step"], record["step_hash"], record["decoupled"] = (
        dim,
        s.step,
        stream(s.step, 0),
        s.decoupled,
    )
    record["lr"], record["eps"], record["beta1"], record["beta2"] = s.lr, s.eps, s.beta1, s.beta2
    record["one_minus_beta1"], record["one_minus_beta2"] = 1 - s.beta1, 1 - s.beta2
    record["weight_decay"], record["shrink"] = s.weight_decay, 1 - s.lr * s.weight_decay
    if s.rule == Rule.ADAM:
        record["step_size"] = s.lr * (1 - s.beta2**s.step) ** 0.5 / (1 - s.beta1**s.step)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _blocks(gradients: Sequence[RowGradients], dim: int) -> tuple[np.ndarray, list[Tensor]]:
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
        ids = _integer(lookups.ids)
        offsets = _wide_offsets(lookups)
        out = np.zeros((count, len(BLOCK_FIELDS)), np.int64)
        feature = np.arange(count)
        itemsize = ids.element_size()
        if offsets is None:
            out[:, 0] = ids.data_ptr() + feature * (ids.stride(1) * itemsize)
            out[:, 2] = ids.stride(0)
            out[:, -2] = size
        else:
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


@numba.njit(cache=True, nogil=True)
def _count(counts: np.ndarray, ids: np.ndarray, amount: float) -> int:
    bad = 0
    for i in range(len(ids)):
        row = ids[i]
        if row < 0 or row >= len(counts):
            bad += 1
        else:
            counts[row] += amount
    return bad


def count(counts: Tensor, ids: Tensor, amount: float) -> None:
    """See :func:`slipstream.kernels.reference.count`."""
    flat = _integer(ids).reshape(-1)
    if _count(counts.numpy(), flat.numpy(), amount):
        reference.count(counts, ids, amount)  # raises with the place
