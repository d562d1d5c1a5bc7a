"""Which rows an update touches, and by which gradients: keys, one stable sort, segments, and sums of long segments.

1. Each lookup gets the key of its row (rows of all tables counted through); lookups that update nothing, because of
   padding, a shut gate or an id outside the table, get the key after all rows.
2. A stable sort brings the lookups of a row together, in sample order: a *segment*.
3. Segments of more than ``CHUNK`` lookups (rows of small tables) are summed in chunks by many programs; what is left
   is a short list of partial sums for each.

Chunks begin at a segment's start, so a row's sum is made of the same terms in the same order whatever other rows a
batch holds, and in every run: no sum is made by atomics (those here count, in integers).
"""

# Triton compiles what pyright cannot follow.
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from slipstream.kernels.cuda_hash import gate_is_open
from slipstream.kernels.cuda_note import note_outside
from slipstream.kernels.cuda_pool import bag_range

TABLE_FIELDS = (
    "weight", "rows", "first", "second", "gate", "last_step", "seed_hash", "signal", "trail", "base", "rounding_hash",
    "by_sample",
)  # fmt: skip
"""int64 numbers of a table: addresses (0 for none), rows, hashes of the seed, the key of its row 0, and whether gates
draw by the sample (1 or 0)."""
SETTINGS = (
    "step", "step_hash", "measured", "lr", "eps", "beta1", "beta2", "fresh1", "fresh2", "decay", "shrink", "step_size",
    "log_beta1", "log_beta2", "log_shrink", "unused",
)  # fmt: skip
"""int64 numbers of a step; those from ``lr`` on are the bits of a float32."""
COUNTS = 2
"""int64 numbers counted for a table: lookups, and those of them that a gate skipped."""
CHUNK = 128
"""Lookups of a segment that one program sums before partial sums are made."""
_TABLE, _COUNTS, _CHUNK = tl.constexpr(len(TABLE_FIELDS)), tl.constexpr(COUNTS), tl.constexpr(CHUNK)


@triton.jit
def _key(tables, counts, flag, table, row, position, sample, alive, step_hash, key_type: tl.constexpr, none):
    """Keys of the lookups of one feature's tile; ``alive``: those of them that are no padding."""
    fields = tables + table * _TABLE
    rows, gate = tl.load(fields + 1), tl.load(fields + 4)
    bad = alive & ((row < 0) | (row >= rows))
    note_outside(flag, bad, tl.zeros_like(row) + table, position, row, tl.zeros_like(row) + rows, 1)
    alive = alive & (bad == 0)
    is_open = alive
    if gate != 0:
        level = tl.load(gate.to(tl.pointer_type(tl.uint8)) + row, mask=alive, other=0)
        is_open = alive & gate_is_open(level, row, sample, tl.load(fields + 11), step_hash + tl.load(fields + 6))
    reached = tl.sum(alive.to(tl.int32), 0).to(tl.int64)
    if reached > 0:
        tl.atomic_add(counts + table * _COUNTS, reached, sem="relaxed")
        tl.atomic_add(counts + table * _COUNTS + 1, reached - tl.sum(is_open.to(tl.int32), 0), sem="relaxed")
    return tl.where(is_open, tl.load(fields + 9) + row, none).to(key_type)


@triton.jit(
    do_not_specialize=["grad", "size", "sample_stride", "feature_stride", "grad_stride", "grad_feature", "none"]
)
def keys_one_hot(
    tables,
    settings,
    targets,
    paddings,
    ids,
    grad,
    keys,
    sources,
    counts,
    flag,
    size,
    sample_stride,
    feature_stride,
    grad_stride,
    grad_feature,
    none,
    BLOCK: tl.constexpr,
):
    """Keys and the gradients' addresses of lookups [B, F], feature after feature; strides of gradients in bytes.

    Grid: (tiles of BLOCK samples, F).
    """
    feature = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = sample < size
    at = feature * size + sample
    table = tl.load(targets + feature)
    key_type: tl.constexpr = keys.dtype.element_ty
    key = tl.full([BLOCK], none, key_type)
    if table >= 0:
        row = tl.load(ids + sample * sample_stride + feature * feature_stride, mask=mask, other=0).to(tl.int64)
        alive = mask & (row != tl.load(paddings + feature))
        key = _key(tables, counts, flag, table, row, sample, sample, alive, tl.load(settings + 1), key_type, none)
    tl.store(keys + at, key, mask=mask)
    tl.store(sources + at, grad + feature * grad_feature + sample * grad_stride, mask=mask)


@triton.jit(do_not_specialize=["grad", "size", "length", "grad_stride", "grad_feature", "none"])
def keys_bags(
    tables,
    settings,
    targets,
    paddings,
    ids,
    offsets,
    sample_weights,
    grad,
    keys,
    sources,
    factors,
    counts,
    flag,
    size,
    length,
    grad_stride,
    grad_feature,
    none,
    WEIGHTED: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Keys, addresses of gradients and factors of lookups in bags; keys of lookups in no bag are left as they are.

    Grid: (tiles of BLOCK bags, F).
    """
    feature = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = sample < size
    table = tl.load(targets + feature)
    key_type: tl.constexpr = keys.dtype.element_ty
    if table >= 0:
        begin, end, wrong = bag_range(offsets, feature * size + sample, mask, length)
        note_outside(flag, wrong, tl.zeros_like(sample) + feature, sample, begin, tl.zeros_like(sample) + length, 4)
        first = tl.load(offsets + feature * size).to(tl.int64)
        padding, step_hash = tl.load(paddings + feature), tl.load(settings + 1)
        source = grad + feature * grad_feature + sample * grad_stride
        longest = tl.max(end - begin, 0)
        used = tl.zeros([BLOCK], tl.int32)
        if MEAN:
            for ahead in range(0, longest):
                inside = mask & (begin + ahead < end)
                row = tl.load(ids + begin + ahead, mask=inside, other=0).to(tl.int64)
                used += (inside & (row != padding)).to(tl.int32)
        share = 1.0 / tl.maximum(used, 1).to(tl.float32)
        for ahead in range(0, longest):
            place = begin + ahead
            inside = mask & (place < end)
            row = tl.load(ids + place, mask=inside, other=0).to(tl.int64)
            alive = inside & (row != padding)
            key = _key(tables, counts, flag, table, row, place - first, sample, alive, step_hash, key_type, none)
            tl.store(keys + place, key, mask=inside)
            tl.store(sources + place, source, mask=inside)
            factor = share
            if WEIGHTED:
                factor = share * tl.load(sample_weights + place, mask=inside, other=0.0)
            tl.store(factors + place, factor, mask=inside)


@triton.jit(do_not_specialize=["count", "none"])
def mark_heads(keys, heads, count, none, BLOCK: tl.constexpr):
    """int32 1 where a segment begins in sorted keys [N]."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    key = tl.load(keys + at, mask=mask, other=0)
    before = tl.load(keys + at - 1, mask=mask & (at > 0), other=-1)
    tl.store(heads + at, ((key != before) & (key != none)).to(tl.int32), mask=mask)


@triton.jit(do_not_specialize=["count", "none"])
def find_starts(keys, ranks, starts, count, none, BLOCK: tl.constexpr):
    """Where segments begin, and after the last where it ends.

    Args:
        keys: Sorted, [N].
        ranks: int32 [N], segments begun so far.
        starts: int32 or int64 [N + 1], written up to the number of segments.
        count: N.
        none: Key of lookups that update nothing.
        BLOCK: Positions of a program.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    key = tl.load(keys + at, mask=mask, other=0)
    before = tl.load(keys + at - 1, mask=mask & (at > 0), other=-1)
    rank = tl.load(ranks + at, mask=mask, other=0)
    begins = mask & (key != before)
    # The first key of those that update nothing ends the last segment: it counts in no rank.
    tl.store(starts + rank - (key != none).to(tl.int32), at.to(starts.dtype.element_ty), mask=begins)
    last = mask & (at == count - 1) & (key != none)
    tl.store(starts + rank, (at + 1).to(starts.dtype.element_ty), mask=last)


@triton.jit
def gradient_rows(
    order,
    sources,
    factors,
    place,
    alive,
    column,
    inside,
    TYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    FACTORS: tl.constexpr,
):
    """float32 [N, BLOCK_D]: gradients (times their factors) of the sorted lookups at ``place`` [N]."""
    item = tl.load(order + place, mask=alive, other=0)
    address = tl.load(sources + item, mask=alive, other=0)
    source = address.to(tl.pointer_type(TYPE))
    if ALIGNED:
        source = tl.multiple_of(source, 16)
    value = tl.load(source[:, None] + column[None, :], mask=alive[:, None] & inside, other=0.0).to(tl.float32)
    if FACTORS:
        value = value * tl.load(factors + item, mask=alive, other=0.0)[:, None]
    return value


@triton.jit
def _sum_chunk(
    partials,
    slot,
    begin,
    end,
    order,
    sources,
    factors,
    D: tl.constexpr,
    TYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    FACTORS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    column = tl.arange(0, BLOCK_D)
    inside = (column < D)[None, :]
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in tl.static_range(0, _CHUNK, BLOCK):
        place = begin + start + tl.arange(0, BLOCK)
        alive = place < end
        value = gradient_rows(order, sources, factors, place, alive, column, inside, TYPE, ALIGNED, FACTORS)
        total += tl.sum(value, 0)
    tl.store(partials + slot * D + column, total, mask=column < D)


@triton.jit
def partial_slot(begin, chunk):
    """Where the sum of chunk number ``chunk`` of a segment, which begins at ``begin``, is kept.

    Two slots for each CHUNK positions are enough: a place for the chunk that begins a segment and one for the last
    chunk of the segment before, since these segments are longer than CHUNK.
    """
    return ((begin + chunk * _CHUNK) // _CHUNK) * 2 + (chunk == 0).to(tl.int64)


@triton.jit(do_not_specialize=["count"])
def sum_long_segments(
    ranks,
    starts,
    order,
    sources,
    factors,
    partials,
    count,
    D: tl.constexpr,
    TYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    FACTORS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sums the chunks, of segments longer than CHUNK, that begin within each CHUNK positions; float32 [slots, D].

    Grid: (positions / CHUNK).
    """
    low = tl.program_id(0).to(tl.int64) * _CHUNK
    high = tl.minimum(low + _CHUNK, count)
    used = tl.load(starts + tl.load(ranks + count - 1)).to(tl.int64)  # lookups that update something come first
    if low < used:
        segment = tl.load(ranks + low) - 1
        begin, end = tl.load(starts + segment).to(tl.int64), tl.load(starts + segment + 1).to(tl.int64)
        if (end - begin > _CHUNK) & (begin < low):
            number = (low - begin + _CHUNK - 1) // _CHUNK
            at = begin + number * _CHUNK
            if at < tl.minimum(end, high):
                stop = tl.minimum(at + _CHUNK, end)
                slot = partial_slot(begin, number)
                _sum_chunk(partials, slot, at, stop, order, sources, factors, D, TYPE, ALIGNED, FACTORS, BLOCK, BLOCK_D)
        segment = tl.load(ranks + tl.minimum(high, used) - 1) - 1
        begin, end = tl.load(starts + segment).to(tl.int64), tl.load(starts + segment + 1).to(tl.int64)
        if (end - begin > _CHUNK) & (begin >= low):
            slot = partial_slot(begin, tl.full([], 0, tl.int64))
            _sum_chunk(
                partials, slot, begin, begin + _CHUNK, order, sources, factors, D, TYPE, ALIGNED, FACTORS, BLOCK,
                BLOCK_D,
            )  # fmt: skip
