"""The GPU back end's host code never looks at what the device computed, as far as a CPU can show.

Every launch and every operator of torch between them is recorded: none of those that make the host wait is there, and
batches of one shape make the same launches on the same shapes whatever their ids, which is what a CUDA graph replays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.backends import needs_triton
from tests.interpreter import ON_GPU
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from slipstream import optim
from slipstream.data.batch import Bag
from slipstream.embedding import EmbeddingCollection, TableConfig
from slipstream.kernels import cuda_errors, registry
from slipstream.kernels.types import Lookups, RowGradients, TableSet, TableState

pytestmark = [needs_triton, pytest.mark.skipif(ON_GPU, reason="tests/gpu has torch's own check of waiting")]

WAITING = {
    "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_consecutive",
    "unique_dim", "unique_dim_consecutive", "bincount", "histc", "repeat_interleave",
}  # fmt: skip
"""Operators of which the result, or its size, must come to the host."""


class Record(TorchDispatchMode):
    """Names and shapes of operators, names and grids of launches."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            assert not any(at is not None and at.dtype in (torch.bool, torch.uint8) for at in args[1]), (
                "index by a mask"
            )
        assert name not in WAITING, name
        self.done.append((name, *(tuple(arg.shape) for arg in args if isinstance(arg, Tensor))))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Iterator[Record]:
    """Records what runs, and refuses Python's ways to read a tensor; not within a kernel, nor for the late report."""
    from triton.runtime.interpreter import GridExecutor

    made, launch, launching = Record(), GridExecutor.__call__, [False]

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        made.done.append((self.fn.__name__, self.grid))
        launching[0] = True
        try:
            with _disable_current_modes():
                return launch(self, *args, **kwargs)
        finally:
            launching[0] = False

    monkeypatch.setattr(GridExecutor, "__call__", recorded)
    registry.set_check("lazy")
    report = cuda_errors._notes_of(torch.device("cpu")).copy
    for name in ("tolist", "numpy", "cpu"):
        plain = getattr(Tensor, name)

        def read(self: Tensor, *args: Any, _plain: Any = plain, _name: str = name, **kwargs: Any) -> Any:
            assert launching[0] or self is report, f"{_name}() on the hot path"
            return _plain(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, read)
    yield made
    monkeypatch.undo()
    registry.set_check("always")


def same(record: Record, work: Callable[[int], object]) -> None:
    """The work on two batches does the same, once caches are warm."""
    found = []
    for number in range(4):
        record.done = []
        with record:
            work(number)
        found.append(record.done)
    assert found[2] == found[3] and len(found[3]) > 1


CONFIGS = [TableConfig("user", 50, 4), TableConfig("item", 7, 4), TableConfig("tag", 1, 4)]


def batch(number: int) -> tuple[Tensor, list[Bag]]:
    """16 samples: all of one row, or all different; bags of other lengths but as many ids."""
    few = torch.zeros(16, 2, dtype=torch.int32)
    ids = few if number % 2 else torch.stack([torch.arange(16), torch.arange(16) % 7], 1).int()
    lengths = torch.tensor([20, *[0] * 15] if number % 2 else [0, 4, *[1] * 14])
    lengths[-1] += 20 - lengths.sum()
    return ids, [Bag(torch.zeros(20, dtype=torch.int32), torch.cat([torch.zeros(1).long(), lengths.cumsum(0)]))]


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adagrad, optim.RowwiseAdagrad, optim.Adam, optim.AdamW])
def test_a_step_never_waits_and_does_the_same_for_other_ids(kind: Any, record: Record) -> None:
    tables = EmbeddingCollection(CONFIGS, multi_hot=["tag"])
    model = nn.ModuleDict({"tables": tables, "head": nn.Linear(12, 1)})
    for table in tables.table_of.values():
        table.open_gate()[::2] = 100
        table.measure()
    optimizer = kind(tables.parameters(), lr=0.05, on_skip="catch_up")

    batches = batch(0), batch(1)

    def step(number: int) -> None:
        ids, bags = batches[number % 2]
        loss = model["head"](tables(ids, bags).flatten(1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with registry.using("cuda"):
        same(record, step)


def test_norms_counting_classification_and_hashing_never_wait(record: Record) -> None:
    tables = TableSet([TableState(torch.zeros(50, 4))])
    users = torch.randn(50, 4)
    counts, marks = torch.zeros(50), [torch.zeros(50, dtype=torch.uint8)] * 3

    batches = batch(0), batch(1)

    def work(number: int) -> None:
        ids, bags = batches[number % 2]
        pairs = [(bag.values, bag.offsets) for bag in bags]
        block = RowGradients(Lookups(ids[:, :1], None, 1), torch.ones(16, 1, 4), (0,))
        assert isinstance(registry.squared_norms(tables, [block])[0], Tensor)
        registry.count(counts, ids[:, 0], 1.0)
        registry.count_marked(marks, ids, pairs)
        registry.hardest(users, users, ids[:, 0], ids)
        registry.hash_lookups(ids, pairs, 8)

    with registry.using("cuda"):
        same(record, work)
