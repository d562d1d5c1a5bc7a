"""The queue of kept inputs against select and concat."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policies.support import make_batch

from slipstream.data.batch import Batch
from slipstream.errors import ConfigError
from slipstream.policies.packing import Packer


def carrying(start: int, size: int) -> Batch:
    batch = make_batch(start, size, with_bag=True)
    batch.carried = {"pair": torch.stack([batch.index, -batch.index], dim=1), "flag": batch.index % 2 == 0}
    return batch


def equal(one: Batch, two: Batch) -> bool:
    carried = [(one.carried or {})[name].equal((two.carried or {})[name]) for name in two.carried or {}]
    return all(a.equal(b) for a, b in zip(one.tensors(), two.tensors(), strict=True)) and all(carried)


@settings(deadline=None, max_examples=50)
@given(
    picks=st.lists(st.lists(st.integers(0, 11), max_size=30), max_size=8),
    size=st.integers(1, 20),
    saved_after=st.integers(0, 8),
)
def test_inputs_come_out_in_order_in_full_batches(picks: list[list[int]], size: int, saved_after: int) -> None:
    packer, out = Packer(), []
    for i, rows in enumerate(picks):
        packer.add(carrying(12 * i, 12), torch.tensor(rows, dtype=torch.int64), size)
        if i == saved_after:
            other = Packer()
            other.load_state_dict(packer.state_dict(), size)
            packer = other
        while i % 2 and (full := packer.take()) is not None:
            assert len(full) == size
            out.append(full)
    assert packer.waiting == sum(map(len, picks)) - sum(map(len, out))
    rest = packer.rest()
    out += [] if rest is None else [rest]
    assert packer.waiting == 0
    assert packer.rest() is None
    if out:
        expected = [carrying(12 * i, 12).select(torch.tensor(rows).long()) for i, rows in enumerate(picks) if rows]
        assert equal(Batch.concat(out), Batch.concat(expected))


def test_batches_that_came_out_stay_as_they_are() -> None:
    packer = Packer()
    packer.add(make_batch(0, 8), torch.arange(8), 4)
    first = packer.take()
    packer.add(make_batch(8, 8), torch.arange(8), 4)
    assert first is not None
    assert first.index.tolist() == [0, 1, 2, 3]


def test_views_and_strided_columns() -> None:
    batch, packer = make_batch(0, 8), Packer()
    batch.index = torch.arange(16)[::2]
    batch.inputs = batch.inputs._replace(ids=batch.inputs.ids.t().contiguous().t(), dense=batch.inputs.dense[:, :0])
    packer.add(batch, torch.tensor([7, 2]), 2)
    full = packer.take()
    assert full is not None
    assert full.index.tolist() == [14, 4]
    assert torch.equal(full.inputs.ids, batch.inputs.ids[[7, 2]])
    assert full.inputs.dense.shape == (2, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: setattr(batch, "time", None), "with and without time"),
        (lambda batch: setattr(batch, "carried", {"pair": batch.index}), "carry different"),
        (lambda batch: setattr(batch, "labels", batch.labels.double()), "dtypes, shapes or devices"),
        (lambda batch: setattr(batch, "labels", batch.labels[:, None]), "dtypes, shapes or devices"),
    ],
)
def test_batches_of_another_kind_are_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    packer, other = Packer(), make_batch(8, 8)
    packer.add(make_batch(0, 8), torch.arange(3), 8)
    change(other)
    with pytest.raises(ConfigError, match=message):
        packer.add(other, torch.arange(3), 8)


@pytest.mark.parametrize("row", [8, -1])
def test_rows_that_are_not_there(row: int) -> None:
    with pytest.raises(IndexError, match="of 8 inputs"):
        Packer().add(make_batch(0, 8), torch.tensor([row]), 4)
