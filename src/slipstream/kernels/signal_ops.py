"""Measuring a row in its update, as explicit vector instructions; codes as in :mod:`slipstream.kernels.signal`."""

# Numba compiles what pyright cannot follow: intrinsics take fewer arguments than their definitions show.
# pyright: basic, reportCallIssue=false, reportPrivateImportUsage=false, reportReturnType=false
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from slipstream.kernels.row_ops import (
    _FLOAT,
    _I32,
    _I64,
    _VECTOR,
    LANES,
    _at,
    _fold,
    _masked,
    _splat,
)
from slipstream.kernels.signal import CODES, EXACT, MANTISSA_SHIFT, ONE, TINY, TRAIL_DECAY, TRAIL_LANES

_TRAIL = ir.VectorType(_FLOAT, TRAIL_LANES)
TRAIL_BYTES = 4 * (TRAIL_LANES + 1)
"""Bytes of a row's trail."""


def _measurement(loads: int, extra: int, scalars: int, sums: int, body: Callable[..., Sequence[Any]], end: Any) -> Any:
    """A Numba intrinsic ``(width, (pointers…, scalars…))`` that returns a code.

    ``body`` makes of the vectors at the first ``loads`` pointers ``sums`` vectors, which are added up (in float32) over
    the row; ``end`` makes of these, the ``extra`` pointers and the scalars a number, which is encoded.
    """

    def typer(_context: Any, width: Any, arguments: Any) -> Any:
        del width, arguments

        def codegen(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            width, packed = values
            unpacked = cgutils.unpack_tuple(builder, packed)
            addresses, others = unpacked[:loads], unpacked[loads:]
            zero = ir.Constant(_VECTOR, [0.0] * LANES)
            totals = [cgutils.alloca_once_value(builder, zero) for _ in range(sums)]

            def add(vectors: Sequence[Any]) -> None:
                for total, value in zip(totals, body(builder, *vectors), strict=True):
                    builder.store(builder.fadd(builder.load(total), value), total)

            full = builder.and_(width, _I64(-LANES))
            with cgutils.for_range_slice(builder, _I64(0), full, _I64(LANES), _I64) as (index, _):
                add([builder.load(_at(builder, a, index, 4, _VECTOR), align=4) for a in addresses])
            with builder.if_then(builder.icmp_signed("<", full, width)):
                rest = _splat(builder, builder.trunc(builder.sub(width, full), _I32))
                lanes = ir.Constant(ir.VectorType(_I32, LANES), list(range(LANES)))
                mask = builder.icmp_signed("<", lanes, rest)
                at = [_at(builder, a, full, 4, _VECTOR) for a in addresses]
                add([_masked(builder, "load", _VECTOR, [p, _I32(4), mask, zero], _VECTOR) for p in at])
            return _encode(builder, end(builder, [builder.load(total) for total in totals], *others))

        tuple_type = types.Tuple([types.int64] * (loads + extra) + [types.float32] * scalars)
        return types.int64(types.int64, tuple_type), codegen

    return intrinsic(typer)


def _encode(b: Any, value: Any) -> Any:
    bits = b.and_(b.bitcast(value, _I32), _I32(0x7FFFFFFF))
    code = b.sub(b.lshr(bits, _I32(MANTISSA_SHIFT)), _I32(ONE - CODES))
    code = b.select(b.icmp_signed("<", code, _I32(0)), _I32(0), code)
    code = b.select(b.icmp_signed(">", code, _I32(CODES - 1)), _I32(CODES - 1), code)
    return b.zext(code, _I64)


def _sum(b: Any, vector: Any) -> Any:
    return b.extract_element(_fold(b, vector, 1), _I32(0))


def _divide(b: Any, x: Any, y: Any) -> Any:
    tiny = _FLOAT(np.float32(TINY))
    return b.fdiv(x, b.select(b.fcmp_ordered(">", y, tiny), y, tiny))


def _norm(b: Any, vector: Any) -> Any:
    root = cgutils.get_or_insert_function(b.module, ir.FunctionType(_FLOAT, [_FLOAT]), "llvm.sqrt.f32")
    return b.call(root, [_sum(b, b.fmul(vector, vector))])


def _moments_end(b: Any, sums: Sequence[Any], correction: Any) -> Any:
    moved, possible = (_sum(b, total) for total in sums)
    return b.fmul(_divide(b, moved, possible), correction)


def _trail_end(b: Any, sums: Sequence[Any], trail: Any) -> Any:
    change = _fold(b, sums[0], TRAIL_LANES)
    keep = _FLOAT(np.float32(TRAIL_DECAY))
    net_at, path_at = _at(b, trail, _I64(0), 4, _TRAIL), _at(b, trail, _I64(TRAIL_LANES), 4, _FLOAT)
    net = b.load(net_at, align=4)
    net = b.fadd(b.fmul(net, ir.Constant(_TRAIL, [np.float32(TRAIL_DECAY)] * TRAIL_LANES)), change)
    path = b.fadd(b.fmul(b.load(path_at, align=4), keep), _norm(b, change))
    b.store(net, net_at, align=4)
    b.store(path, path_at, align=4)
    return _divide(b, _norm(b, net), path)


moments_code = _measurement(2, 0, 1, 2, lambda b, m, v: [b.fmul(m, m), v], _moments_end)
"""(first, second, correction): the code of sum(first²) / sum(second) · correction."""
trail_code = _measurement(2, 1, 0, 1, lambda b, after, before: [b.fsub(after, before)], _trail_end)
"""(weight, weight before, trail): moves the row's trail on; the code of net movement / path."""


@numba.njit(inline="always")
def counted(count: int, draw: int) -> int:
    """The low byte after one more step.

    Args:
        count: The low byte.
        draw: uint64, hash of the row and step.
    """
    if count < EXACT:
        return count + 1
    mask = (np.uint64(1) << np.uint64((count - EXACT) // 16 + 1)) - np.uint64(1)
    return min(count + ((draw & mask) == np.uint64(0)), CODES - 1)
