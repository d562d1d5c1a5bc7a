"""Lookups drawn by the size of their gradient, on the CPU: see :mod:`slipstream.kernels.reference_sampling`.

One pass over the lookups counts them, the next draws, without a branch that depends on a draw: a processor guesses
them wrong half of the time. Threads take tables.
"""

# Numba compiles what pyright cannot follow: intrinsics take fewer arguments than their definitions show.
# pyright: basic, reportCallIssue=false, reportPrivateImportUsage=false, reportReturnType=false
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false, reportArgumentType=false
from __future__ import annotations

import math
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba import carray, types
from torch import Tensor

from slipstream.errors import UnsupportedOption
from slipstream.kernels import parallel
from slipstream.kernels.cpu_lookups import mix
from slipstream.kernels.cpu_records import at, integer, packed, wide_offsets
from slipstream.kernels.hashing import stream
from slipstream.kernels.intrinsics import (
    fetch_add,
    load_f32,
    load_i32,
    load_i64,
    load_id,
    pointer_f64,
    prefetch_near,
    prefetch_write,
    store_f32,
    store_i64,
)
from slipstream.kernels.reference_sampling import NORM_WIDTH, SCORE_SHIFT, Sampled, Sampling, powers
from slipstream.kernels.row_ops import squared_norm
from slipstream.kernels.sources import digest
from slipstream.kernels.types import DrawnLookups, Lookups

AHEAD = 16
"""Lookups by which prefetching runs ahead."""
SMALL = 4096
"""Lookups below which a second thread costs more than it saves."""

FEATURE_FIELDS = ("popularity", "rows", "padding", "ids", "grad", "first", "kept", "considered")
"""Address of float32 [R] (0 keeps all lookups), R, the padding row, addresses of the feature's first id and gradient,
the place of its first lookup in what is written; written back: lookups kept, and all but padding."""
FIELDS = len(FEATURE_FIELDS)

ARGUMENTS = np.dtype(
    [
        ("counter", "i8"),  # address of the int64 that hands out items
        ("num_items", "i8"),
        ("items", "i8"),  # address of int64 [num_items + 1]: where each item begins in ``order``
        ("order", "i8"),  # address of int64 [F]: features by table, as one thread counts a table
        ("features", "i8"),  # address of int64 [F, 8], see FEATURE_FIELDS
        ("sums", "i8"),  # address of float64 [F, 3]: of probabilities, of scores, number
        ("batch_size", "i8"),
        ("wide", "i8"),  # ids are int64
        ("stride", "i8"),  # of ids, in elements, without offsets
        ("offsets", "i8"),  # address of int64 [F * B + 1], or 0
        ("sample_weights", "i8"),  # address of float32 [N], or 0
        ("mean", "i8"),
        ("grad_bytes", "i8"),  # from sample to sample
        ("dim", "i8"),
        ("width", "i8"),  # elements that the norm is taken of
        ("powers", "i8"),  # address of float32 [8192]
        ("kept", "i8"),  # addresses of what is written: int64 [N], int64 [N], float32 [N]
        ("samples", "i8"),
        ("factors", "i8"),
        ("salt", "u8"),
        ("increment", "f4"),
        ("factor", "f4"),
        ("floor", "f4"),
    ],
    align=True,
)
_RECORD = numba.from_dtype(ARGUMENTS)


@cache
def _worker() -> Any:
    source_digest = digest()

    def worker(pointer: Any) -> None:
        _ = source_digest  # part of the cache's key
        a = carray(pointer, 1)[0]
        counter, num_items, items, order, features = a.counter, a.num_items, a.items, a.order, a.features
        batch, wide, stride, offsets = a.batch_size, a.wide, a.stride, a.offsets
        sample_weights, mean, grad_bytes, width, dim = a.sample_weights, a.mean, a.grad_bytes, a.width, a.dim
        by_code, kept, samples, factors = a.powers, a.kept, a.samples, a.factors
        salt, increment, factor, floor = a.salt, a.increment, a.factor, a.floor
        sums = carray(pointer_f64(a.sums), (1 << 40, 3))
        one = np.float32(1.0)
        while True:
            item = fetch_add(counter, 1)
            if item >= num_items:
                break
            for place in range(load_i64(items, item), load_i64(items, item + 1)):
                record = features + load_i64(order, place) * FIELDS * 8
                popularity, rows, padding, ids = (
                    load_i64(record, 0),
                    load_i64(record, 1),
                    load_i64(record, 2),
                    load_i64(record, 3),
                )
                begin, end, step = np.int64(0), np.int64(batch), np.int64(stride)
                if offsets != 0:
                    begin = load_i64(offsets, load_i64(order, place) * batch)
                    end, step = load_i64(offsets, (load_i64(order, place) + 1) * batch), np.int64(1)
                if popularity == 0:
                    continue
                for j in range(begin, end):
                    # Of an id outside the table, too: prefetching never faults.
                    prefetch_write(popularity + 4 * load_id(ids, wide, min(j + AHEAD, end - 1) * step))
                    row = load_id(ids, wide, j * step)
                    if row != padding and 0 <= row < rows:
                        store_f32(popularity, row, load_f32(popularity, row) + increment)
            for place in range(load_i64(items, item), load_i64(items, item + 1)):
                feature = load_i64(order, place)
                record = features + feature * FIELDS * 8
                popularity, rows, padding, ids = (
                    load_i64(record, 0),
                    load_i64(record, 1),
                    load_i64(record, 2),
                    load_i64(record, 3),
                )
                grad, first = load_i64(record, 4), load_i64(record, 5)
                number, considered = first, np.int64(0)
                chances, scores, drawn = 0.0, 0.0, np.int64(0)
                for b in range(batch):
                    bag = feature * batch + b
                    if offsets == 0:
                        begin, end = b, b + 1
                    else:
                        begin, end = load_i64(offsets, bag), load_i64(offsets, bag + 1)
                    prefetch_near(grad + min(b + AHEAD, batch - 1) * grad_bytes)
                    share = one
                    if mean != 0 and end - begin > 1:
                        in_bag = np.int64(0)
                        for j in range(begin, end):
                            in_bag += load_id(ids, wide, j) != padding
                        share = one / np.float32(max(in_bag, 1))
                    square = squared_norm(width, (grad + b * grad_bytes,))
                    if square == 0.0 and dim > width:  # a part that the model does not use, or a gradient of 0
                        square = squared_norm(dim - width, (grad + b * grad_bytes + 4 * width,))
                    norm = np.float32(math.sqrt(square))
                    for j in range(begin, end):
                        row = load_id(ids, wide, j * stride if offsets == 0 else j)
                        if row == padding:
                            continue
                        considered += 1
                        weight = share
                        if sample_weights != 0:
                            weight = share * load_f32(sample_weights, j)
                        chance = one
                        if popularity != 0 and 0 <= row < rows:
                            code = load_i32(popularity, row) >> SCORE_SHIFT
                            score = norm * abs(weight) * load_f32(by_code, code)
                            chance = max(score * factor, floor)
                            if not chance < one:  # nor is a number
                                chance = one
                            chances += chance
                            scores += score
                            drawn += 1
                        key = bag if offsets == 0 else j
                        draw = np.float32(mix(key, salt) >> np.uint64(40)) * np.float32(1.0 / (1 << 24))
                        store_i64(kept, number, row)
                        store_i64(samples, number, b)
                        store_f32(factors, number, weight / chance)
                        number += np.int64(draw < chance)
                store_i64(record, 6, number - first)
                store_i64(record, 7, considered)
                sums[feature, 0], sums[feature, 1], sums[feature, 2] = chances, scores, drawn

    return numba.cfunc(types.void(types.CPointer(_RECORD)), cache=True, error_model="numpy")(worker)


def sample_lookups(lookups: Lookups, grad: Tensor, sampling: Sampling) -> Sampled:
    """See :func:`slipstream.kernels.reference_sampling.sample_lookups`."""
    size, count = lookups.batch_size, lookups.num_features
    if tuple(grad.shape[:2]) != (size, count) or len(sampling.popularity) != count:
        what = f"a gradient {tuple(grad.shape)} and {len(sampling.popularity)} counts for lookups {(size, count)}"
        raise UnsupportedOption(what, remedy="pass the gradient of what pool returned, and counts or None a feature")
    ids, offsets = integer(lookups.ids), wide_offsets(lookups)
    if offsets is not None:
        ids = ids.contiguous()
    sample_weights = lookups.sample_weights
    if sample_weights is not None:
        sample_weights = sample_weights.detach().float().contiguous()
    if grad.dtype != torch.float32 or grad.stride(2) != 1:
        grad = grad.to(torch.float32).contiguous()
    feature = np.arange(count)
    features = np.zeros((count, FIELDS), np.int64)
    features[:, 0] = [0 if counts is None else counts.data_ptr() for counts in sampling.popularity]
    features[:, 1] = [0 if counts is None else counts.numel() for counts in sampling.popularity]
    features[:, 2] = lookups.padding_rows()
    features[:, 4] = grad.data_ptr() + feature * (grad.stride(1) * 4)
    if offsets is None:
        features[:, 3] = ids.data_ptr() + feature * (ids.stride(1) * ids.element_size())
        features[:, 5] = feature * size
    else:
        features[:, 3], features[:, 5] = ids.data_ptr(), offsets.numpy()[:-1:size] if size else 0
    order = np.argsort(features[:, 0], kind="stable")  # features of one table after another, those of none first
    owners = features[order, 0]
    items = np.flatnonzero(np.diff(owners, prepend=-1, append=-1)) if count else np.zeros(1, np.int64)
    room = ids.numel()
    kept, samples = torch.empty(room, dtype=torch.int64), torch.empty(room, dtype=torch.int64)
    factors, sums, counter = torch.empty(room), np.zeros((count, 3)), np.zeros(1, np.int64)
    by_code = powers(sampling.exponent)
    arguments = packed(
        ARGUMENTS,
        counter=at(counter),
        num_items=len(items) - 1,
        items=at(items),
        order=at(order),
        features=at(features),
        sums=at(sums),
        batch_size=size,
        wide=ids.dtype == torch.int64,
        stride=ids.stride(0),
        offsets=0 if offsets is None else offsets.data_ptr(),
        sample_weights=0 if sample_weights is None else sample_weights.data_ptr(),
        mean=lookups.mean,
        grad_bytes=grad.stride(0) * 4,
        dim=grad.shape[2],
        width=min(grad.shape[2], NORM_WIDTH),
        powers=by_code.data_ptr(),
        kept=kept.data_ptr(),
        samples=samples.data_ptr(),
        factors=factors.data_ptr(),
        salt=stream(sampling.step, sampling.seed),
        increment=sampling.increment,
        factor=float(sampling.factor),
        floor=sampling.floor,
    )
    if size and count:
        parallel.run(_worker().address, arguments, 1 if room < SMALL else torch.get_num_threads())
    counts, considered = features[:, 6], features[:, 7]
    drawn = DrawnLookups(
        kept,
        samples,
        factors,
        tuple(features[:, 5].tolist()),
        tuple(counts.tolist()),
        tuple((considered - counts).tolist()),
        size,
    )
    return Sampled(drawn, torch.from_numpy(considered - counts), torch.from_numpy(sums.sum(axis=0)))
