"""Numba intrinsics for what its Python subset lacks: raw loads and stores, prefetch, an atomic counter."""

# Numba compiles what pyright cannot follow: intrinsics take fewer arguments than their definitions show.
# pyright: basic, reportCallIssue=false, reportPrivateImportUsage=false, reportReturnType=false
# pyright: reportAttributeAccessIssue=false, reportMissingTypeStubs=false, reportArgumentType=false
from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _pointer(context: Any, builder: Any, address: Any, index: Any, element: Any) -> Any:
    base = builder.inttoptr(address, context.get_value_type(element).as_pointer())
    return builder.gep(base, [index])


def _loader(element: Any, align: int) -> Any:
    def typer(_context: Any, address: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.load(_pointer(context, builder, *arguments, element), align=align)

        return element(types.int64, types.int64), codegen

    return typer


def _storer(element: Any, align: int) -> Any:
    def typer(_context: Any, address: Any, index: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            base, index, value = arguments
            builder.store(value, _pointer(context, builder, base, index, element), align=align)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, element), codegen

    return typer


load_f32 = intrinsic(_loader(types.float32, 4))
load_i32 = intrinsic(_loader(types.int32, 4))
load_i64 = intrinsic(_loader(types.int64, 8))
load_u8 = intrinsic(_loader(types.uint8, 1))
load_u16 = intrinsic(_loader(types.uint16, 2))
store_f32 = intrinsic(_storer(types.float32, 4))
store_i32 = intrinsic(_storer(types.int32, 4))
store_i64 = intrinsic(_storer(types.int64, 8))
store_u16 = intrinsic(_storer(types.uint16, 2))


@numba.njit(inline="always")
def load_id(base: int, wide: int, index: int) -> int:
    """The id at an index, int64; kept as int64 if ``wide``, else as int32."""
    return load_i64(base, index) if wide else np.int64(load_i32(base, index))


@intrinsic
def fetch_add(_typing_context: Any, address: Any, amount: Any) -> Any:
    """Add to the int64 at an address, atomically; returns the value before."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        base = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", base, arguments[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def copy_bytes(_typing_context: Any, to: Any, source: Any, size: Any) -> Any:
    """Copy bytes from one address to another; the two ranges must not overlap."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        to, source, size = arguments
        cgutils.raw_memcpy(builder, builder.inttoptr(to, byte), builder.inttoptr(source, byte), size, 1)

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def prefetch_write(_typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, soon to be written."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        _prefetch(builder, arguments[0], 1)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def prefetch_read(_typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, soon to be read."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        _prefetch(builder, arguments[0], 0)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def prefetch_near(_typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address to come into the second-level cache.

    What waits for the first-level cache takes one of its few places for misses: long rows in scattered places are
    read a third slower.
    """

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        _prefetch(builder, arguments[0], 0, locality=2)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _prefetch(builder: Any, address: Any, write: int, *, locality: int = 3) -> None:
    i32, byte = ir.IntType(32), ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.inttoptr(address, byte), i32(write), i32(locality), i32(1)])


def _caster(element: Any) -> Any:
    def typer(_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(element).as_pointer())

        return types.CPointer(element)(types.int64), codegen

    return typer


@intrinsic
def address_of(_typing_context: Any, array: Any) -> Any:
    """Address of the first element of an array."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), codegen


pointer_i64 = intrinsic(_caster(types.int64))
pointer_f64 = intrinsic(_caster(types.float64))
