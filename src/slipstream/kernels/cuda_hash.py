"""Device functions: the gates' hash and stochastic rounding, bit for bit those of ``hashing`` and ``rounding``."""

# Triton compiles what pyright cannot follow.
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from slipstream.kernels import hashing, rounding

KEY_FACTOR = tl.constexpr(hashing.KEY_FACTOR)
SAMPLE_SHIFT = tl.constexpr(hashing.SAMPLE_SHIFT)
MIX_1 = tl.constexpr(hashing.MIX_1)
MIX_2 = tl.constexpr(hashing.MIX_2)
LEAST_NORMAL = tl.constexpr(rounding.LEAST_NORMAL)
SUBNORMAL_UNIT = tl.constexpr(rounding.SUBNORMAL_UNIT)


@triton.jit
def mix(keys, salt):
    """uint64 hashes of int64 keys; ``salt`` int64: the stream of the step and seed."""
    x = keys.to(tl.uint64, bitcast=True) * KEY_FACTOR + salt.to(tl.uint64, bitcast=True)
    x = (x ^ (x >> 30)) * MIX_1
    x = (x ^ (x >> 27)) * MIX_2
    return x ^ (x >> 31)


@triton.jit
def gate_is_open(gate, rows, samples, by_sample, salt):
    """Whether rows (int64) with gates (uint8, same shape) are updated in the step of ``salt``.

    With ``by_sample`` (1 or 0) the lookups of ``samples`` (int64, same shape) draw for themselves.
    """
    draw = (mix(rows + by_sample * ((samples + 1) << SAMPLE_SHIFT), salt) >> 56).to(tl.int32)
    level = gate.to(tl.int32)
    return (level == 255) | (draw < level)


@triton.jit
def rounded(values, elements, salt, TO: tl.constexpr):
    """float32 ``values`` in the type ``TO``, by chance where it is narrower; see :mod:`slipstream.kernels.rounding`.

    Args:
        values: float32, any shape.
        elements: int64, same shape: row * D + column.
        salt: int64, the stream of the step and of the rounding's seed.
        TO: The table's element type.
    """
    if TO == tl.float32:
        return values
    draws = (mix(elements, salt) >> 40).to(tl.int32)
    bits = values.to(tl.int32, bitcast=True)
    if TO == tl.bfloat16:
        result = ((bits + (draws >> 8)) & -65536).to(tl.float32, bitcast=True)
    else:
        result = ((bits + (draws >> 11)) & -8192).to(tl.float32, bitcast=True)
        size = tl.abs(values)
        small = tl.floor(size * (1.0 / SUBNORMAL_UNIT) + draws.to(tl.float32) * 5.9604644775390625e-08) * SUBNORMAL_UNIT
        small = tl.where(bits < 0, -small, small)
        result = tl.where(size < LEAST_NORMAL, small, result)
    finite = (bits & 0x7F800000) != 0x7F800000
    return tl.where(finite, result, values).to(TO)
