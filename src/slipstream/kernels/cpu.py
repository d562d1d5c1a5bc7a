"""The CPU back end: puts tensors' addresses into argument records and runs the Numba workers. float32 tables."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from slipstream.errors import IndexOutOfRange, UnsupportedOption
from slipstream.kernels import cpu_pool, cpu_update, parallel, reference
from slipstream.kernels.cpu_records import (
    assign_blocks,
    at,
    block_records,
    feature_records,
    integer,
    packed,
    settings_fields,
    table_records,
    wide_offsets,
)
from slipstream.kernels.signal import corrections, is_measured
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableState, UpdateCounts, UpdateSettings

SMALL = 4096
"""Lookups below which a second thread costs more than it saves."""


def _threads(lookups: int) -> int:
    return 1 if lookups < SMALL else torch.get_num_threads()


def pool(weights: Sequence[Tensor], lookups: Lookups, out_dtype: torch.dtype = torch.float32) -> Tensor:
    """See :func:`slipstream.kernels.reference.pool`; ``out_dtype`` float32 or bfloat16."""
    size, count, dim = lookups.batch_size, lookups.num_features, weights[0].shape[1]
    if len(weights) != count:
        raise UnsupportedOption(f"{len(weights)} tables for lookups of {count} features", remedy="pass one for each")
    out = torch.empty(size, count, dim, dtype=out_dtype)
    if out.numel() == 0:
        return out
    ids = integer(lookups.ids)
    offsets = wide_offsets(lookups)
    features = feature_records(weights, lookups)
    counter = np.zeros(1, np.int64)
    arguments = np.zeros(1, cpu_pool.ARGUMENTS)
    record = arguments[0]
    record["counter"] = at(counter)
    record["batch_size"], record["num_features"], record["dim"] = size, count, dim
    record["features"] = at(features)
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
    worker = cpu_pool.pool_worker(cpu_pool.specialised(dim))
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
    lookup_records, alive = block_records(gradients, dim)
    (records, order), scales = table_records(tables)
    lookup_records, most, total = assign_blocks(records, lookup_records)
    threads = _threads(total)
    parts = 1
    # One part for norms: their sum over parts would depend on the number of threads.
    while settings.rule != Rule.NORM and threads > 1 and parts * len(tables) < 2 * threads:
        parts *= 2
    num_items = parts * len(tables)
    counter, counts, norms = np.zeros(1, np.int64), np.zeros((num_items, 4), np.int64), np.zeros(num_items)
    measured, factors_address = is_measured(settings.step), 0
    if measured and settings.rule == Rule.ADAM and records[:, 9].any():
        factors = corrections(settings.beta1, settings.beta2)
        factors_address = factors.data_ptr()
        alive.append(factors)
    arguments = packed(
        cpu_update.ARGUMENTS,
        counter=at(counter),
        num_items=num_items,
        parts=parts,
        tables=at(records),
        order=at(order),
        scales=at(scales),
        blocks=at(lookup_records),
        max_lookups=most,
        counts=at(counts),
        norms=at(norms),
        measured=measured,
        corrections=factors_address,
        dim=dim,
        **settings_fields(settings),
    )
    worker = cpu_update.update_worker(int(settings.rule), cpu_pool.specialised(dim))
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
    flat = integer(ids).reshape(-1)
    if _count(counts.numpy(), flat.numpy(), amount):
        reference.count(counts, ids, amount)  # raises with the place
