"""The scout on a GPU: all inputs predicted side by side, then learned from one by one, as the reference does.

Learning one input after the other is what the scout is; one program does it, which on a GPU is slow. A training's
:class:`~slipstream.policies.skipper.Skipper` decides before a batch is sent, so its scout runs on the CPU; this one is
for ids that are on the GPU already.
"""

# Triton compiles what pyright cannot follow.
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from slipstream.kernels import hashing

KEY_FACTOR, MIX_1 = tl.constexpr(hashing.KEY_FACTOR), tl.constexpr(hashing.MIX_1)


@triton.jit
def _slot(feature, ids, bits):
    x = (ids.to(tl.uint64, bitcast=True) + ((feature + 1).to(tl.uint64, bitcast=True) << 40)) * KEY_FACTOR
    x = (x ^ (x >> 32)) * MIX_1
    return (x >> (64 - bits).to(tl.uint64)).to(tl.int32)


@triton.jit(do_not_specialize=["size", "count", "sample_stride", "feature_stride", "bits"])
def hash_columns(slots, starts, ids, size, count, sample_stride, feature_stride, bits, BLOCK: tl.constexpr):
    """Slots of one-hot ids [B, F], each input's first. Grid: (tiles of BLOCK lookups of the B * F)."""
    item = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = item < size.to(tl.int64) * count
    sample, feature = item // count, item % count
    id_ = tl.load(ids + sample * sample_stride + feature * feature_stride, mask=mask, other=0).to(tl.int64)
    at = tl.load(starts + sample, mask=mask, other=0) + feature
    tl.store(slots + at, _slot(feature, id_, bits), mask=mask)


@triton.jit(do_not_specialize=["size", "feature", "bits"])
def hash_bag(slots, ends, feature, values, offsets, size, bits, BLOCK: tl.constexpr):
    """Slots of one feature's bags, put where ``ends`` [B] points, which is moved on. Grid: (tiles of BLOCK inputs)."""
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = sample < size
    begin = tl.load(offsets + sample, mask=mask, other=0)
    length = tl.load(offsets + sample + 1, mask=mask, other=0) - begin
    at = tl.load(ends + sample, mask=mask, other=0)
    number = tl.zeros([BLOCK], tl.int64) + feature
    for ahead in range(0, tl.max(length, 0)):
        alive = mask & (ahead < length)
        id_ = tl.load(values + begin + ahead, mask=alive, other=0).to(tl.int64)
        tl.store(slots + at + ahead, _slot(number, id_, bits), mask=alive)
    tl.store(ends + sample, at + length, mask=mask)


@triton.jit
def _clipped(value):
    return tl.minimum(tl.maximum(value, -4.0), 4.0)


@triton.jit(do_not_specialize=["size", "columns", "bias"])
def predict(table, slots, starts, dense, probability, seen, size, columns, bias, BLOCK: tl.constexpr):
    """Probabilities, and how often each input's rarest slot was seen. Grid: (tiles of BLOCK inputs)."""
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = sample < size
    begin = tl.load(starts + sample, mask=mask, other=0)
    length = tl.load(starts + sample + 1, mask=mask, other=0) - begin
    logit = tl.zeros([BLOCK], tl.float32) + tl.load(table + bias * 4)
    least = tl.full([BLOCK], float("inf"), tl.float32)
    for ahead in range(0, tl.max(length, 0)):
        alive = mask & (ahead < length)
        row = tl.load(slots + begin + ahead, mask=alive, other=0).to(tl.int64) * 4
        logit += tl.load(table + row, mask=alive, other=0.0)
        least = tl.minimum(least, tl.load(table + row + 2, mask=alive, other=float("inf")))
    for column in range(0, columns):
        value = tl.load(dense + sample * columns + column, mask=mask, other=0.0)
        logit += tl.load(table + (bias + 1 + column) * 4) * _clipped(value)
    tl.store(probability + sample, 1.0 / (1.0 + tl.exp(-logit)), mask=mask)
    tl.store(seen + sample, least, mask=mask)


@triton.jit
def _learn(table, row, g, lr):
    total = tl.load(table + row * 4 + 1) + g * g
    weight = tl.load(table + row * 4)
    tl.debug_barrier()
    tl.store(table + row * 4 + 1, total)
    tl.store(table + row * 4, weight - lr * g / tl.sqrt(1.0 + total))
    tl.debug_barrier()  # the next input may read what was written, by any thread


@triton.jit(do_not_specialize=["size", "columns", "bias", "lr"])
def learn(table, slots, starts, dense, labels, chosen, probability, size, columns, bias, lr):
    """Adagrad on one input after the other. Grid: (1)."""
    for sample in range(0, size):
        if tl.load(chosen + sample) != 0:
            g = tl.load(probability + sample) - tl.load(labels + sample)
            for place in range(tl.load(starts + sample), tl.load(starts + sample + 1)):
                slot = tl.load(slots + place).to(tl.int64)
                _learn(table, slot, g, lr)
                looked_up = tl.load(table + slot * 4 + 2)
                tl.debug_barrier()
                tl.store(table + slot * 4 + 2, looked_up + 1.0)
                tl.debug_barrier()
            _learn(table, bias, g, lr)
            for column in range(0, columns):
                value = tl.load(dense + sample * columns + column)
                _learn(table, bias + 1 + column, g * _clipped(value), lr)
