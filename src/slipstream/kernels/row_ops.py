"""Arithmetic over the elements of a row, as explicit vector instructions.

Left to itself LLVM unrolls short rows into scalar code, since it cannot know that rows do not overlap. So each
operation is written down once as a function of vectors of 16 elements, and :func:`_row_operation` makes a Numba
intrinsic of it: whole vectors first, then one masked vector for what is left. A width that is known when a kernel is
compiled leaves straight-line code.
"""

# Numba compiles what pyright cannot follow: intrinsics take fewer arguments than their definitions show.
# pyright: basic, reportCallIssue=false, reportPrivateImportUsage=false, reportReturnType=false
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Elements of a vector: one register with AVX-512, two with AVX2, four with NEON."""
TILE = 4
"""Rows that :func:`multiply_tile` computes at once."""

_FLOAT, _DOUBLE, _I64, _I32, _BIT = ir.FloatType(), ir.DoubleType(), ir.IntType(64), ir.IntType(32), ir.IntType(1)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_HALF = ir.VectorType(ir.IntType(16), LANES)
_MASK = ir.VectorType(_BIT, LANES)
_FUSED = ("contract",)

Body = Callable[..., Sequence[Any]]
"""(builder, vectors loaded, scalars in every lane) → for each pointer the vector to store, or None."""


def _splat(builder: Any, scalar: Any, kind: Any = None) -> Any:
    kind = kind or scalar.type
    vector = builder.insert_element(ir.Constant(ir.VectorType(kind, LANES), ir.Undefined), scalar, _I32(0))
    zeros = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    return builder.shuffle_vector(vector, vector, zeros)


def _at(builder: Any, address: Any, index: Any, size: int, kind: Any) -> Any:
    return builder.inttoptr(builder.add(address, builder.mul(index, _I64(size))), kind.as_pointer())


def _masked(builder: Any, name: str, result: Any, arguments: Sequence[Any], vector: Any) -> Any:
    suffix = "v16f32" if vector is _VECTOR else "v16i16"
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.{name}.{suffix}.p0")
    return builder.call(function, arguments)


def _fold(b: Any, vector: Any, lanes: int) -> Any:
    """The vector of ``lanes`` elements whose element i sums every ``lanes``-th element from the i-th on."""
    while vector.type.count > lanes:
        half = vector.type.count // 2
        low, high = (ir.Constant(ir.VectorType(_I32, half), list(range(at, at + half))) for at in (0, half))
        vector = b.fadd(b.shuffle_vector(vector, vector, low), b.shuffle_vector(vector, vector, high))
    return vector


def _row_operation(pointers: int, scalars: int, body: Body, *, reduce: Any = None) -> Any:
    """A Numba intrinsic ``(width, (pointers…, scalars…))``: ``body`` applied along rows of ``width`` elements.

    With ``reduce`` the last vector that ``body`` returns is summed over the row in numbers of that type, first in
    lanes, then halves of lanes, and the sum returned.
    """

    def typer(_context: Any, width: Any, arguments: Any) -> Any:
        del width, arguments
        result = types.int64 if reduce is None else types.float64 if reduce is _DOUBLE else types.float32

        def codegen(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            width, packed = values
            unpacked = cgutils.unpack_tuple(builder, packed)
            addresses, numbers = unpacked[:pointers], unpacked[pointers:]
            lanes = [_splat(builder, number) for number in numbers]
            if reduce is not None:
                wide = ir.VectorType(reduce, LANES)
                sums = cgutils.alloca_once_value(builder, ir.Constant(wide, [0.0] * LANES))

            def add(value: Any) -> None:
                value = builder.fpext(value, wide) if reduce is _DOUBLE else value
                builder.store(builder.fadd(builder.load(sums), value, flags=_FUSED), sums)

            full = builder.and_(width, _I64(-LANES))
            with cgutils.for_range_slice(builder, _I64(0), full, _I64(LANES), _I64) as (index, _):
                loaded = [builder.load(_at(builder, a, index, 4, _VECTOR), align=4) for a in addresses]
                results = list(body(builder, loaded, *lanes))
                if reduce is not None:
                    add(results.pop())
                for address, value in zip(addresses, results, strict=False):
                    if value is not None:
                        size = 4 if value.type == _VECTOR else 2
                        builder.store(value, _at(builder, address, index, size, value.type), align=size)
            with builder.if_then(builder.icmp_signed("<", full, width)):
                rest = _splat(builder, builder.trunc(builder.sub(width, full), _I32))
                numbers_of_lanes = ir.Constant(ir.VectorType(_I32, LANES), list(range(LANES)))
                mask = builder.icmp_signed("<", numbers_of_lanes, rest)
                zero = ir.Constant(_VECTOR, [0.0] * LANES)
                loaded = [
                    _masked(builder, "load", _VECTOR, [_at(builder, a, full, 4, _VECTOR), _I32(4), mask, zero], _VECTOR)
                    for a in addresses
                ]
                results = list(body(builder, loaded, *lanes))
                if reduce is not None:
                    # Lanes beyond the row loaded zeros, and every reduction here is of products of what was loaded.
                    add(results.pop())
                for address, value in zip(addresses, results, strict=False):
                    if value is not None:
                        size = 4 if value.type == _VECTOR else 2
                        kind = _VECTOR if size == 4 else _HALF
                        to = _at(builder, address, full, size, kind)
                        _masked(builder, "store", ir.VoidType(), [value, to, _I32(size), mask], kind)
            if reduce is None:
                return _I64(0)
            return builder.extract_element(_fold(builder, builder.load(sums), 1), _I32(0))

        # One tuple of addresses (int64) and numbers (float32): intrinsics have a fixed number of arguments.
        tuple_type = types.Tuple([types.int64] * pointers + [types.float32] * scalars)
        return result(types.int64, tuple_type), codegen

    return intrinsic(typer)


def _sqrt(b: Any, x: Any) -> Any:
    function = cgutils.get_or_insert_function(b.module, ir.FunctionType(_VECTOR, [_VECTOR]), "llvm.sqrt.v16f32")
    return b.call(function, [x])


def _multiply_add(b: Any, x: Any, y: Any, z: Any) -> Any:
    return b.fadd(b.fmul(x, y, flags=_FUSED), z, flags=_FUSED)


def _minus(b: Any, w: Any, rate: Any, step: Any) -> Any:
    return b.fsub(w, b.fmul(rate, step, flags=_FUSED), flags=_FUSED)


def _adagrad(b: Any, v: Any, lr: Any, eps: Any) -> Any:
    w, total, g = v
    total = _multiply_add(b, g, g, total)
    return [b.fsub(w, b.fdiv(b.fmul(lr, g), b.fadd(_sqrt(b, total), eps))), total, None]


def _adam(b: Any, v: Any, fresh1: Any, fresh2: Any, size: Any, eps: Any) -> Any:
    w, first, second, g = v
    first = _multiply_add(b, b.fsub(g, first), fresh1, first)
    second = _multiply_add(b, b.fsub(b.fmul(g, g), second), fresh2, second)
    step = b.fdiv(b.fmul(size, first), b.fadd(_sqrt(b, second), eps))
    return [b.fsub(w, step), first, second, None]


def _bf16(b: Any, x: Any) -> Any:
    """Round to nearest even; NaN stays NaN."""
    integers = ir.VectorType(_I32, LANES)
    constant = lambda value: ir.Constant(integers, [value] * LANES)  # noqa: E731
    bits = b.bitcast(x, integers)
    odd = b.and_(b.lshr(bits, constant(16)), constant(1))
    rounded = b.lshr(b.add(b.add(bits, constant(0x7FFF)), odd), constant(16))
    quiet = b.or_(b.lshr(bits, constant(16)), constant(64))
    return b.trunc(b.select(b.fcmp_unordered("uno", x, x), quiet, rounded), _HALF)


copy_row = _row_operation(2, 0, lambda b, v: [v[1], None])
"""(to, source): to = source."""
copy_row_bf16 = _row_operation(2, 1, lambda b, v, k: [_bf16(b, b.fmul(v[1], k)), None])
"""(to, source, k): to = source * k, in bfloat16."""
set_row = _row_operation(2, 1, lambda b, v, k: [b.fmul(v[1], k), None])
"""(to, source, k): to = source * k."""
add_row = _row_operation(2, 1, lambda b, v, k: [_multiply_add(b, v[1], k, v[0]), None])
"""(to, source, k): to = to + source * k."""
scale_row = _row_operation(1, 1, lambda b, v, k: [b.fmul(v[0], k)])
"""(to, k): to = to * k."""
squared_norm = _row_operation(1, 0, lambda b, v: [None, b.fmul(v[0], v[0])], reduce=_DOUBLE)
"""(source): sum of squares, products in float32, sum in float64."""
dot = _row_operation(2, 0, lambda b, v: [None, None, b.fmul(v[0], v[1], flags=_FUSED)], reduce=_FLOAT)
"""(x, y): sum of their products, all in float32."""
dot_of_difference = _row_operation(
    3, 0, lambda b, v: [None, None, None, b.fmul(v[0], b.fsub(v[1], v[2]), flags=_FUSED)], reduce=_FLOAT
)
"""(x, y, z): sum of x * (y - z), likewise."""
difference_row = _row_operation(3, 1, lambda b, v, k: [b.fmul(b.fsub(v[1], v[2]), k), None, None])
"""(to, x, y, k): to = (x - y) * k."""
momentum_row = _row_operation(
    2, 1, lambda b, v, keep: [_multiply_add(b, v[0], keep, v[1]), _multiply_add(b, v[0], keep, v[1])]
)
"""(momentum, g, keep): momentum = g = momentum * keep + g."""
sgd_row = _row_operation(2, 1, lambda b, v, lr: [_minus(b, v[0], lr, v[1]), None])
"""(weight, g, lr): weight = weight - lr * g."""
adagrad_row = _row_operation(3, 2, _adagrad)
"""(weight, sum, g, lr, eps): sum = sum + g * g; weight = weight - lr * g / (sqrt(sum) + eps)."""
adam_row = _row_operation(4, 4, _adam)
"""(weight, first, second, g, 1 - beta1, 1 - beta2, step size, eps): one step of Adam."""


@intrinsic
def multiply_tile(_typing_context: Any, depth: Any, arguments: Any) -> Any:
    """``(depth, (to, to's width, x, x's width, y, y's width))``: ``TILE`` rows by ``LANES`` columns of the product x y.

    x has ``depth`` columns and y as many rows; addresses are of the tile's first row and column, widths the elements
    from row to row. The sums stay in registers.
    """
    del depth, arguments

    def codegen(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        depth, packed = values
        to, to_width, x, x_width, y, y_width = cgutils.unpack_tuple(builder, packed)
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(TILE)]
        for one in sums:
            builder.store(zero, one)  # alloca_once stores at the function's entry alone
        with cgutils.for_range(builder, depth, intp=_I64) as loop:
            row = builder.load(_at(builder, y, builder.mul(loop.index, y_width), 4, _VECTOR), align=4)
            for number, one in enumerate(sums):
                place = builder.add(builder.mul(x_width, _I64(number)), loop.index)
                factor = _splat(builder, builder.load(_at(builder, x, place, 4, _FLOAT), align=4))
                builder.store(_multiply_add(builder, row, factor, builder.load(one)), one)
        for number, one in enumerate(sums):
            builder.store(builder.load(one), _at(builder, to, builder.mul(to_width, _I64(number)), 4, _VECTOR), align=4)
        return _I64(0)

    return types.int64(types.int64, types.Tuple([types.int64] * 6)), codegen
