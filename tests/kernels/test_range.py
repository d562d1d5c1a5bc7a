"""Ids outside a table raise, and are neither read nor written."""

from __future__ import annotations

import pytest
import torch
from tests.backends import BACK_ENDS, load
from torch import Tensor

from slipstream.errors import IndexOutOfRange, SlipstreamError
from slipstream.kernels import reference
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableState, UpdateSettings

# The far ones would crash the process if they were read.
OUTSIDE = (-1, 5, 2**31 - 1, -(2**31), 2**40, -(2**40), 2**62)


def inside_of(memory: Tensor) -> Tensor:
    """Rows 5 to 9 of a larger memory, whose other rows nobody may touch."""
    return memory[5:10]


def with_bad(bad: int, offsets: bool) -> Lookups:
    wide = abs(bad) > 2**31 - 1
    ids = torch.tensor([1, 4, bad, 0], dtype=torch.int64 if wide else torch.int32)
    if offsets:
        return Lookups(ids, torch.tensor([0, 1, 1, 4]), 1)
    return Lookups(ids.unsqueeze(1), None, 1)


@pytest.mark.parametrize("kernels", [*BACK_ENDS, "reference"])
@pytest.mark.parametrize("offsets", [False, True], ids=["one-hot", "bags"])
@pytest.mark.parametrize("bad", OUTSIDE)
def test_pool_raises(bad: int, offsets: bool, kernels: str) -> None:
    weight = inside_of(torch.full((15, 3), 7.0))
    with pytest.raises(IndexOutOfRange, match=str(bad)) as caught:
        (reference if kernels == "reference" else load(kernels)).pool([weight], with_bad(bad, offsets))
    assert isinstance(caught.value, IndexError)  # what torch raises


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("offsets", [False, True], ids=["one-hot", "bags"])
@pytest.mark.parametrize("bad", OUTSIDE)
@pytest.mark.parametrize("rule", [Rule.SGD, Rule.ADAM], ids=lambda rule: rule.name)
def test_row_update_raises_and_writes_nothing_outside(rule: Rule, bad: int, offsets: bool, kernels: str) -> None:
    memory = [torch.full((15, 3), value) for value in (1.0, 2.0, 3.0)]
    weight, first, second = map(inside_of, memory)
    gate = torch.full((15,), 255, dtype=torch.uint8)
    table = TableState(weight, first if rule == Rule.ADAM else None, second if rule == Rule.ADAM else None, gate[5:10])
    found = with_bad(bad, offsets)
    block = RowGradients(found, torch.ones(found.batch_size, 1, 3), (0,))
    with pytest.raises(IndexOutOfRange):
        load(kernels).row_update([table], [block], UpdateSettings(rule, 1, 0.1, 1e-8, 0.9, 0.99))
    for value, part in zip((1.0, 2.0, 3.0), memory, strict=True):
        assert (part[:5] == value).all() and (part[10:] == value).all()


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_row_update_names_the_table(kernels: str) -> None:
    tables = [TableState(torch.zeros(100, 3)), TableState(torch.zeros(5, 3))]
    block = RowGradients(Lookups(torch.tensor([[7, 7]]), None, 2), torch.ones(1, 2, 3), (0, 1))
    with pytest.raises(IndexOutOfRange, match="table 1"):
        load(kernels).row_update(tables, [block], UpdateSettings(Rule.SGD, lr=0.1))


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_count_raises_and_counts_inside(kernels: str) -> None:
    memory = torch.zeros(15)
    load(kernels).count(memory[5:10], torch.tensor([[0, 4], [4, 4]], dtype=torch.int32), 0.5)
    assert memory.tolist() == [0.0] * 5 + [0.5, 0.0, 0.0, 0.0, 1.5] + [0.0] * 5
    columns = torch.tensor([[1, 4], [1, 4], [2, 4]])
    load(kernels).count(memory[5:10], columns[:, 0], 1.0)  # a column, as the lookups of one feature are
    assert memory[5:10].tolist() == [0.5, 2.0, 1.0, 0.0, 1.5]
    for bad in OUTSIDE:
        with pytest.raises(IndexOutOfRange):
            load(kernels).count(memory[5:10], torch.tensor([bad]), 1.0)
    assert memory[:5].sum() == 0 and memory[10:].sum() == 0


@pytest.mark.parametrize("offsets", [[0, 3, 2, 4], [-1, 0, 1, 4], [0, 1, 2, 5], [0, 2**40, 2**40, 4]])
@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_offsets_that_fall_or_leave_the_ids_raise(offsets: list[int], kernels: str) -> None:
    found = Lookups(torch.tensor([0, 1, 2, 3]), torch.tensor(offsets), 1)
    with pytest.raises(SlipstreamError, match="offsets"):
        load(kernels).pool([torch.zeros(5, 3)], found)
    with pytest.raises(SlipstreamError, match="offsets"):
        load(kernels).row_update(
            [TableState(torch.zeros(5, 3))], [RowGradients(found, torch.ones(3, 1, 3), (0,))], UpdateSettings(Rule.SGD)
        )


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_rows_that_are_not_contiguous_are_refused_not_overwritten(kernels: str) -> None:
    weight = torch.randn(3, 5).t()
    block = RowGradients(Lookups(torch.tensor([[1]]), None, 1), torch.ones(1, 1, 3), (0,))
    with pytest.raises(SlipstreamError, match="contiguous"):
        load(kernels).row_update([TableState(weight)], [block], UpdateSettings(Rule.SGD, lr=0.1))
