"""Compiles every GPU kernel for compute capability 9.0, which needs no GPU, and prints what became of each.

To be run in a process of its own: there Triton must not interpret.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction


class _Driver:
    """Stands in for the driver of a GPU that is not there."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def main() -> None:
    """Calls every operator on CPU tensors; each launch compiles and does nothing else."""
    triton.runtime.driver.set_active(_Driver())
    launch, found = JITFunction.run, {}

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **others: Any) -> Any:
        kernel = launch(self, *arguments, grid=grid, warmup=True, **others)
        ptx = kernel.asm["ptx"]
        mine = found.setdefault(self.__name__, {"local": 0, "wide_loads": 0})
        mine["local"] += ptx.count(".local")
        mine["wide_loads"] += ptx.count("ld.global.v4")
        return kernel

    JITFunction.run = run  # type: ignore[method-assign]
    # Nothing is computed: what lies in fresh memory may be a NaN, at which what follows would stop.
    torch.empty, torch.empty_like = torch.zeros, torch.zeros_like
    _call_everything()
    print(json.dumps(found))


def _call_everything() -> None:
    from slipstream.kernels import cuda
    from slipstream.kernels.types import Lookups, RowGradients, Rule, TableState, UpdateSettings

    one_hot = Lookups(torch.zeros(64, 2, dtype=torch.int32), None, 2)
    bags = Lookups(torch.zeros(128, dtype=torch.int64), torch.arange(129), 2, torch.rand(128))
    for dim, dtype, rule in ((16, torch.float32, Rule.ADAM), (3, torch.bfloat16, Rule.ROWWISE_ADAGRAD)):
        weights = [torch.zeros(rows, dim, dtype=dtype) for rows in (90, 70)]
        tables = []
        for weight in weights:
            first = torch.zeros(len(weight), dim) if rule == Rule.ADAM else torch.zeros(len(weight))
            second = torch.zeros(len(weight), dim) if rule == Rule.ADAM else None
            gate, last = torch.zeros(len(weight), dtype=torch.uint8), torch.zeros(len(weight), dtype=torch.int32)
            table = TableState(weight, first, second, gate, last)
            table.signal, table.trail = torch.zeros(len(weight), dtype=torch.uint16), torch.zeros(len(weight), 5)
            tables.append(table)
        for found in (one_hot, bags):
            cuda.pool(weights, found, torch.bfloat16)
        blocks = [RowGradients(found, torch.zeros(64, 2, dim, dtype=dtype), (0, 1)) for found in (one_hot, bags)]
        cuda.row_update(tables, blocks, UpdateSettings(rule, 1, 0.1, 1e-8, 0.9, 0.99, 0.1))
    for rule in (Rule.NORM, Rule.SGD, Rule.ADAGRAD):
        table = TableState(torch.zeros(9, 4), torch.zeros(9, 4))
        counts = cuda.row_update(
            [table], [RowGradients(Lookups(one_hot.ids[:, :1], None, 1), torch.zeros(64, 1, 4), (0,))],
            UpdateSettings(rule, 1, 0.1, beta1=0.9),
        )  # fmt: skip
        counts._keys, counts._ranks = torch.zeros(64, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
        counts.device_squared_norm()
    bag = (torch.zeros(4, dtype=torch.int32), torch.tensor([0, 1, 2, 4]))
    ids = torch.zeros(3, 2, dtype=torch.int32)
    for dtype in (torch.float32, torch.int32):
        cuda.count(torch.zeros(9, dtype=dtype), ids, 1.0)
    cuda.count_marked([torch.zeros(9, dtype=torch.uint8)] * 3, ids, [bag])
    for dim in (16, 300):
        cuda.hardest(torch.zeros(9, dim), torch.zeros(9, dim), torch.zeros(3, dtype=torch.int32), ids)
    slots, starts = cuda.hash_lookups(ids, [bag], 8)
    cuda.scout(
        torch.zeros(259, 4), slots, starts, torch.zeros(3, 2), torch.zeros(3), torch.ones(3, dtype=torch.bool), 0.1
    )


if __name__ == "__main__":
    main()
