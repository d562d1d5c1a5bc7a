"""Back ends to run a test on: the Numba kernels, and the GPU's, by Triton's interpreter or on a GPU."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.interpreter import DEVICE, HAS_TRITON, MISSING, ON_GPU
from torch import Tensor

from slipstream.kernels import classify, cpu, registry, scout
from slipstream.kernels.types import Lookups, RowGradients, TableState, UpdateCounts, UpdateSettings

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason=MISSING)
BACK_ENDS = (pytest.param("cpu", id="cpu"), pytest.param("cuda", id="cuda", marks=needs_triton))


class _Cpu:
    """The CPU's kernels, with those that have a module of their own."""

    pool, row_update, count = staticmethod(cpu.pool), staticmethod(cpu.row_update), staticmethod(cpu.count)
    count_marked = staticmethod(classify.count_marked)
    hash_lookups, scout = staticmethod(scout.hash_lookups), staticmethod(scout.scout)


class _Gpu:
    """The GPU's kernels for tensors of the CPU: sent there, and what was written brought back."""

    def __init__(self) -> None:
        self.kernels: Any = import_module("slipstream.kernels.cuda")

    def pool(self, weights: Sequence[Tensor], lookups: Lookups, out_dtype: torch.dtype = torch.float32) -> Tensor:
        return self.kernels.pool([_sent(weight) for weight in weights], _sent_lookups(lookups), out_dtype).cpu()

    def row_update(
        self, tables: Sequence[TableState], gradients: Sequence[RowGradients], settings: UpdateSettings
    ) -> UpdateCounts:
        names = ("weight", "first", "second", "gate", "last_step", "signal", "trail")
        there = [replace(table, **{name: _sent(getattr(table, name)) for name in names}) for table in tables]
        blocks = [replace(b, lookups=_sent_lookups(b.lookups), grad=_sent(b.grad)) for b in gradients]
        try:
            counts = self.kernels.row_update(there, blocks, settings)
        finally:
            for here, gone in zip(tables, there, strict=True):
                for name in names:
                    if getattr(here, name) is not None:
                        getattr(here, name).copy_(getattr(gone, name))
        return counts

    def count(self, counts: Tensor, ids: Tensor, amount: float) -> None:
        there = _sent(counts)
        try:
            self.kernels.count(there, _sent(ids), amount)
        finally:
            counts.copy_(there)

    def count_marked(self, marks: Sequence[Tensor], ids: Tensor, bags: Sequence[tuple[Tensor, Tensor]] = ()) -> Tensor:
        there = [(_sent(values), _sent(offsets)) for values, offsets in bags]
        return self.kernels.count_marked([_sent(mark) for mark in marks], _sent(ids), there).cpu()

    def hardest(self, *tensors: Tensor) -> Tensor:
        return self.kernels.hardest(*(_sent(tensor) for tensor in tensors)).cpu()

    def hash_lookups(self, ids: Tensor, bags: Sequence[tuple[Tensor, Tensor]], bits: int) -> tuple[Tensor, Tensor]:
        there = [(_sent(values), _sent(offsets)) for values, offsets in bags]
        slots, starts = self.kernels.hash_lookups(_sent(ids), there, bits)
        return slots.cpu(), starts.cpu()

    def scout(self, table: Tensor, *others: Any) -> tuple[Tensor, Tensor, float]:
        there = _sent(table)
        out = self.kernels.scout(there, *(_sent(o) if isinstance(o, Tensor) else o for o in others))
        table.copy_(there)
        return out[0].cpu(), out[1].cpu(), out[2]


def _sent(tensor: Tensor | None) -> Any:
    return tensor if tensor is None else tensor.to(DEVICE)


def _sent_lookups(lookups: Lookups) -> Lookups:
    return replace(
        lookups,
        ids=_sent(lookups.ids),
        offsets=_sent(lookups.offsets),
        sample_weights=_sent(lookups.sample_weights),
    )


@cache
def load(name: str) -> Any:
    """The kernels of a back end; errors are raised by the call that meets them."""
    if name == "cpu":
        return _Cpu
    registry.set_check("always")
    return _Gpu()


def for_each_back_end(*, examples: int, interpreted: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a test of a property ``check(kernels, data, …)``: each back end's kernels, drawn examples.

    Args:
        examples: How many on the CPU's kernels, and on a GPU.
        interpreted: How many by the interpreter, which takes some 50 ms for an update.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        def run(kernels: str, **others: Any) -> None:
            @settings(max_examples=interpreted if kernels == "cuda" and not ON_GPU else examples, deadline=None)
            @given(st.data())
            def holds(data: st.DataObject) -> None:
                check(load(kernels), data, **others)

            holds()

        parameters = list(inspect.signature(check).parameters.values())
        assert [p.name for p in parameters[:2]] == ["kernels", "data"]
        run.__name__, run.__doc__, run.__module__ = check.__name__, check.__doc__, check.__module__
        run.__signature__ = inspect.Signature([parameters[0], *parameters[2:]])  # type: ignore[attr-defined]
        run.pytestmark = list(getattr(check, "pytestmark", []))  # type: ignore[attr-defined]
        return pytest.mark.parametrize("kernels", BACK_ENDS)(run)

    return decorate
