"""Workers keep the arrays that they work on by address: Numba frees one after its last use, whoever has its address.

SGD, Adagrad and row-wise Adagrad once wrote to freed memory in steps that measure signals, which showed only where
another thread had been given that memory. So it is Numba's own code that is looked at, not what comes out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba import types
from numba.core import ir
from numba.core.analysis import compute_cfg_from_blocks
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import FunctionPass, PassManager, register_pass
from numba.core.typed_passes import IRLegalization

from slipstream.kernels import cpu_dots, cpu_pool, cpu_triples, cpu_update, intrinsics
from slipstream.kernels.intrinsics import address_of, store_f32
from slipstream.kernels.types import Rule

WORKERS: dict[str, Callable[[], Any]] = {
    # Of the branches of the others, each has those of one of these.
    "cpu_update-SGD": lambda: cpu_update.update_worker.__wrapped__(int(Rule.SGD), 16),
    "cpu_update-ADAM": lambda: cpu_update.update_worker.__wrapped__(int(Rule.ADAM), 16),
    "cpu_pool": lambda: cpu_pool.pool_worker.__wrapped__(16),
    "cpu_dots": lambda: cpu_dots._worker.__wrapped__(16, False),
    "cpu_triples": lambda: cpu_triples._hardest_worker.__wrapped__(16),
}


class _Looked(Exception):
    """Ends the compilation; holds the code whose arrays Numba has decided to free."""


@register_pass(mutates_CFG=False, analysis_only=True)
class _Look(FunctionPass):
    _name = "look"

    def __init__(self) -> None:
        FunctionPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        raise _Looked(state.func_ir)


class _UntilFreed(CompilerBase):
    def define_pipelines(self) -> list[PassManager]:
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.add_pass_after(_Look, IRLegalization)
        passes.finalize()
        return [passes]


def freed_too_early(code: Any) -> list[str]:
    """The arrays whose address is taken, by name, that are freed in a loop or before one."""
    arrays = set[str]()
    freed = list[tuple[str, int]]()
    for label, block in code.blocks.items():
        for line in block.body:
            value = getattr(line, "value", None)
            if isinstance(line, ir.Del):
                freed.append((line.value, label))
            elif isinstance(value, ir.Expr) and value.op == "call":
                function = code.get_definition(value.func)
                if getattr(function, "value", None) is address_of:
                    arrays |= {argument.name for argument in value.args}
    assert arrays and arrays <= {name for name, _ in freed}
    return [name for name, label in freed if name in arrays and _is_before_or_in_a_loop(code, label)]


def _is_before_or_in_a_loop(code: Any, label: int) -> bool:
    graph = compute_cfg_from_blocks(code.blocks)
    loops = set[int]().union(*(loop.body for loop in graph.loops().values()))
    reached, todo = {label}, [label]
    while todo:
        new = {after for after, _ in graph.successors(todo.pop())} - reached
        reached |= new
        todo += new
    return bool(loops & reached)


def worker_code(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Numba's code of a worker, from which the machine's is made."""
    real = numba.cfunc
    monkeypatch.setattr(
        numba, "cfunc", lambda signature, cache, **options: real(signature, pipeline_class=_UntilFreed, **options)
    )
    with pytest.raises(_Looked) as looked:
        make()
    return looked.value.args[0]


@pytest.mark.parametrize("name", WORKERS)
def test_arrays_are_freed_at_the_end_of_the_worker(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert freed_too_early(worker_code(WORKERS[name], monkeypatch)) == []


def test_an_array_that_only_its_address_outlives_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> None:
        def worker(number: int) -> None:
            kept, lost = np.zeros(2, np.float32), np.zeros(2, np.float32)
            a, b = address_of(kept), address_of(lost)
            for i in range(number):
                store_f32(a, 0, kept[1])
                store_f32(b, 0, np.float32(i))

        numba.cfunc(types.void(types.int64), cache=True)(worker)

    assert freed_too_early(worker_code(make, monkeypatch)) == ["lost"]


def test_every_worker_that_takes_addresses_is_looked_at() -> None:
    folder = Path(intrinsics.__file__).parent
    users = {path.stem for path in folder.parent.rglob("*.py") if "address_of(" in path.read_text(encoding="utf-8")}
    assert users - {"intrinsics"} == {name.partition("-")[0] for name in WORKERS}
