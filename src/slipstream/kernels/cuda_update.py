"""The row update on a GPU: each program sums the gradients of a few segments, applies the rule, and writes the rows.

A row is one segment, so exactly one program reads and writes it. Rows are computed in float32, whatever their type.
"""

# Triton compiles what pyright cannot follow.
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from slipstream.kernels.cuda_dedup import _CHUNK, _TABLE, gradient_rows, partial_slot
from slipstream.kernels.cuda_hash import mix, rounded
from slipstream.kernels.cuda_pool import UNROLL, row_pointers
from slipstream.kernels.cuda_signal import TRAIL, counted, encode, follow_trail, moments_value
from slipstream.kernels.types import Rule

NORM, SGD, ADAGRAD = tl.constexpr(int(Rule.NORM)), tl.constexpr(int(Rule.SGD)), tl.constexpr(int(Rule.ADAGRAD))
ROWWISE, ADAM = tl.constexpr(int(Rule.ROWWISE_ADAGRAD)), tl.constexpr(int(Rule.ADAM))


@triton.jit
def _number(settings, place: tl.constexpr):
    """A float32 of the step's settings."""
    return tl.load(settings + place).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _power(log2_base, exponent):
    """The power, float32, of a base in [0, 1], by its logarithm, and exponents of 1 or more."""
    return tl.exp2(log2_base * exponent)


@triton.jit(do_not_specialize=["count"])
def update_rows(
    tables,
    scales,
    settings,
    corrections,
    keys,
    ranks,
    starts,
    order,
    sources,
    factors,
    partials,
    norms,
    count,
    T: tl.constexpr,
    RULE: tl.constexpr,
    DECOUPLED: tl.constexpr,
    DECAY: tl.constexpr,
    SIGNAL: tl.constexpr,
    D: tl.constexpr,
    TYPE: tl.constexpr,
    SIZE: tl.constexpr,
    GRAD: tl.constexpr,
    ALIGNED: tl.constexpr,
    GRAD_ALIGNED: tl.constexpr,
    FACTORS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Grid: (positions / BLOCK); programs beyond the segments, of which the host does not know the number, end at once.

    With rule ``NORM`` each segment's sum of squares goes to ``norms`` (float64), and nothing else is written.
    """
    segment = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    segments = tl.load(ranks + count - 1)
    if tl.program_id(0).to(tl.int64) * BLOCK < segments:
        mask = segment < segments
        begin = tl.load(starts + segment, mask=mask, other=0).to(tl.int64)
        end = tl.load(starts + segment + 1, mask=mask, other=0).to(tl.int64)
        key = tl.load(keys + begin, mask=mask, other=0).to(tl.int64)
        # The table is the last whose first key is not above this one.
        each = tl.arange(0, BLOCK_T)
        bases = tl.load(tables + each * _TABLE + 9, mask=each < T, other=9223372036854775807)
        table = tl.sum((bases[None, :] <= key[:, None]).to(tl.int32), 1) - 1
        fields = tables + tl.maximum(table, 0).to(tl.int64) * _TABLE
        row = key - tl.load(fields + 9, mask=mask, other=0)
        column = tl.arange(0, BLOCK_D)
        inside = (column < D)[None, :]
        both = mask[:, None] & inside

        length = end - begin
        is_long = length > _CHUNK
        total = tl.zeros([BLOCK, BLOCK_D], tl.float32)
        short = tl.where(is_long, 0, length)
        for start in range(0, tl.max(short, 0), UNROLL):
            for ahead in tl.static_range(UNROLL):
                alive = start + ahead < short
                total += gradient_rows(
                    order, sources, factors, begin + start + ahead, alive, column, inside, GRAD, GRAD_ALIGNED, FACTORS
                )
        chunks = tl.where(is_long, (length + _CHUNK - 1) // _CHUNK, 0)
        for start in range(0, tl.max(chunks, 0), UNROLL):
            for ahead in tl.static_range(UNROLL):
                number = tl.zeros([BLOCK], tl.int64) + start + ahead
                slot = partial_slot(begin, number)
                value = partials + slot[:, None] * D + column[None, :]
                total += tl.load(value, mask=(number < chunks)[:, None] & inside, other=0.0)
        g = total * tl.load(scales + table, mask=mask, other=0.0)[:, None]
        # Where gates draw by the sample, what was kept of a row weighs more.
        gate = tl.load(fields + 4, mask=mask, other=0)
        thinned = mask & (gate != 0) & (tl.load(fields + 11, mask=mask, other=0) != 0)
        level = tl.load(gate.to(tl.pointer_type(tl.uint8)) + row, mask=thinned, other=255).to(tl.float32)
        g = g * tl.where(level == 255.0, 1.0, 256.0 / level)[:, None]

        if RULE == NORM:
            tl.store(norms + segment, tl.sum((g * g).to(tl.float64), 1), mask=mask)
        else:
            salt = tl.load(settings + 1) + tl.load(fields + 6, mask=mask, other=0)
            step = tl.load(settings)
            weight_at = row_pointers(tl.load(fields, mask=mask, other=0), row, D, TYPE, SIZE, ALIGNED)
            weight_at = weight_at[:, None] + column[None, :]
            w = tl.load(weight_at, mask=both, other=0.0).to(tl.float32)
            before = w
            last_base = tl.load(fields + 5, mask=mask, other=0)
            remembers = mask & (last_base != 0)
            last_at = last_base.to(tl.pointer_type(tl.int32)) + row
            last = tl.load(last_at, mask=remembers, other=0).to(tl.int64)
            first_base = tl.load(fields + 2, mask=mask, other=0)
            has_first = mask & (first_base != 0)
            if RULE == ROWWISE:
                first_at = first_base.to(tl.pointer_type(tl.float32)) + row
                first = tl.load(first_at, mask=mask, other=0.0)
            else:
                first_at = row_pointers(first_base, row, D, tl.float32, 4, ALIGNED)[:, None] + column[None, :]
                has_first = has_first[:, None] & inside
                first = tl.load(first_at, mask=has_first, other=0.0)
            if RULE == ADAM:
                second_base = tl.load(fields + 3, mask=mask, other=0)
                second_at = row_pointers(second_base, row, D, tl.float32, 4, ALIGNED)[:, None] + column[None, :]
                second = tl.load(second_at, mask=both, other=0.0)
            # Where a tile has fewer elements than the program threads, several threads hold the same one: all must have
            # read it before one writes.
            tl.debug_barrier()

            # Steps that passed the row by since its last update.
            # They are kept in 32 bits: beyond 2^31 they wrap, and so does their difference.
            since = (step - 1 - last).to(tl.int32)
            waited = tl.where(remembers, tl.maximum(since, 0), 0).to(tl.float32)
            tl.store(last_at, (tl.zeros_like(last) + step).to(tl.int32), mask=remembers)
            if DECOUPLED:
                keep = tl.where(waited > 0, _power(_number(settings, 14), waited + 1.0), _number(settings, 10))
                w = w * keep[:, None]
            elif DECAY:
                g = g + w * _number(settings, 9)
            lr, eps = _number(settings, 3), _number(settings, 4)
            if RULE == SGD:
                keep = tl.where(waited > 0, _power(_number(settings, 12), waited + 1.0), _number(settings, 5))
                first = first * keep[:, None] + g
                g = tl.where(has_first, first, g)
                w = w - lr * g
            elif RULE == ADAGRAD:
                first += g * g
                w = w - lr * g / (tl.sqrt(first) + eps)
            elif RULE == ROWWISE:
                first += tl.sum(g * g, 1) / D
                w = w - g * (lr / (tl.sqrt(first) + eps))[:, None]
            else:
                first = first * tl.where(waited > 0, _power(_number(settings, 12), waited), 1.0)[:, None]
                second = second * tl.where(waited > 0, _power(_number(settings, 13), waited), 1.0)[:, None]
                first += (g - first) * _number(settings, 7)
                second += (g * g - second) * _number(settings, 8)
                tl.store(second_at, second, mask=both)
                w = w - _number(settings, 11) * first / (tl.sqrt(second) + eps)
            tl.store(first_at, first, mask=has_first)

            rounding = tl.load(settings + 1) + tl.load(fields + 10, mask=mask, other=0)
            result = rounded(w, row[:, None] * D + column[None, :], rounding[:, None], TYPE)
            tl.store(weight_at, result, mask=both)

            if SIGNAL:
                if tl.load(settings + 2) != 0:
                    signal = tl.load(fields + 7, mask=mask, other=0)
                    measured = mask & (signal != 0)
                    signal_at = signal.to(tl.pointer_type(tl.int16)) + row
                    steps = tl.load(signal_at, mask=measured, other=0).to(tl.int32) & 255
                    steps = counted(steps, mix(row, salt))
                    if RULE == ADAM:
                        value = moments_value(first, second, tl.load(corrections + steps, mask=measured, other=0.0))
                    else:
                        change = tl.where(both, result.to(tl.float32) - before, 0.0)
                        trail = tl.load(fields + 8, mask=mask, other=0).to(tl.pointer_type(tl.float32)) + row * TRAIL
                        value = follow_trail(change, column, trail, measured)
                    tl.store(signal_at, ((encode(value) << 8) | steps).to(tl.int16), mask=measured)


@triton.jit
def norms_of_tables(norms, bounds, out, BLOCK: tl.constexpr):
    """Adds up the segments' sums of squares of each table, always in the same order.

    Args:
        norms: float64 [N].
        bounds: int64 [T + 1], a table's first segment.
        out: float64 [T].
        BLOCK: Segments added at a time.
    """
    table = tl.program_id(0)
    begin, end = tl.load(bounds + table), tl.load(bounds + table + 1)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, end - begin, BLOCK):
        at = begin + start + tl.arange(0, BLOCK)
        total += tl.load(norms + at, mask=at < end, other=0.0)
    tl.store(out + table, tl.sum(total, 0))
