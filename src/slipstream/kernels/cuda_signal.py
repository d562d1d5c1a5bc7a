"""Device functions that measure a row in its update; codes as in :mod:`slipstream.kernels.signal`."""

# Triton compiles what pyright cannot follow.
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from slipstream.kernels import signal

CODES = tl.constexpr(signal.CODES)
EXACT = tl.constexpr(signal.EXACT)
MANTISSA_SHIFT = tl.constexpr(signal.MANTISSA_SHIFT)
ONE = tl.constexpr(signal.ONE)
TINY = tl.constexpr(signal.TINY)
TRAIL_DECAY = tl.constexpr(signal.TRAIL_DECAY)
TRAIL_LANES = tl.constexpr(signal.TRAIL_LANES)
TRAIL = tl.constexpr(signal.TRAIL_LANES + 1)


@triton.jit
def encode(value):
    """Codes (int32) of float32 values."""
    bits = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    code = (bits >> MANTISSA_SHIFT) - ONE + CODES
    return tl.minimum(tl.maximum(code, 0), CODES - 1)


@triton.jit
def counted(count, draw):
    """The low byte (int32) after one more measured step; ``draw`` is the row's hash (uint64)."""
    shift = tl.where(count < EXACT, 0, (count - EXACT) // 16 + 1)
    mask = (tl.full(count.shape, 1, tl.int64) << shift.to(tl.int64)) - 1
    hit = (draw.to(tl.int64, bitcast=True) & mask) == 0
    return tl.minimum(count + hit.to(tl.int32), CODES - 1)


@triton.jit
def moments_value(first, second, correction):
    """sum(first²) / sum(second) · correction of rows [N, D]; columns beyond D hold zeros."""
    moved = tl.sum(first * first, 1)
    return moved / tl.maximum(tl.sum(second, 1), TINY) * correction


@triton.jit
def follow_trail(change, columns, trail, mask):
    """Moves trails on by changes [N, D]; net movement ÷ path, [N].

    Args:
        change: float32 [N, BLOCK]; columns beyond D hold zeros.
        columns: int32 [BLOCK].
        trail: Pointers [N] to each row's trail.
        mask: [N], the rows that exist.
    """
    squares = tl.zeros_like(tl.sum(change, 1))
    moved = tl.zeros_like(squares)
    for lane in tl.static_range(TRAIL_LANES):
        mine = tl.sum(tl.where((columns % TRAIL_LANES == lane)[None, :], change, 0.0), 1)
        net = tl.load(trail + lane, mask=mask, other=0.0) * TRAIL_DECAY + mine
        tl.store(trail + lane, net, mask=mask)
        moved += mine * mine
        squares += net * net
    path = tl.load(trail + TRAIL_LANES, mask=mask, other=0.0) * TRAIL_DECAY + tl.sqrt(moved)
    tl.store(trail + TRAIL_LANES, path, mask=mask)
    return tl.sqrt(squares) / tl.maximum(path, TINY)
