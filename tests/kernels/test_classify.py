"""The input classifier against its plain twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from tests.backends import BACK_ENDS, for_each_back_end, load

from slipstream.errors import IndexOutOfRange
from slipstream.kernels import classify, reference


@for_each_back_end(examples=80, interpreted=20)
def test_it_agrees_with_the_reference(kernels: Any, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 30))
    rows, bag_rows = (data.draw(st.lists(st.integers(1, 9), max_size=most)) for most in (4, 2))
    dtype = data.draw(st.sampled_from([torch.int32, torch.int64]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    marks = [torch.randint(0, 3, (count,), generator=generator, dtype=torch.uint8) for count in rows + bag_rows]
    ids = torch.zeros(size, len(rows), dtype=dtype)
    for feature, count in enumerate(rows):
        ids[:, feature] = torch.randint(0, count, (size,), generator=generator)
    if data.draw(st.booleans()):
        ids = ids.T.contiguous().T  # the same values, other strides
    bags = []
    for count in bag_rows:
        lengths = torch.randint(0, 4, (size,), generator=generator)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        bags.append((torch.randint(0, count, (int(offsets[-1]),), generator=generator).to(dtype), offsets))
    found = kernels.count_marked(marks, ids, bags)
    assert found.dtype == torch.int32
    assert torch.equal(found, reference.count_marked(marks, ids, bags))


def test_by_hand() -> None:
    marks = [torch.tensor([0, 1], dtype=torch.uint8), torch.tensor([1, 0, 1], dtype=torch.uint8)]
    ids = torch.tensor([[1], [0], [1]], dtype=torch.int32)
    bag = (torch.tensor([0, 0, 2, 1]), torch.tensor([0, 3, 3, 4]))
    for back_end in (classify, reference):
        assert back_end.count_marked(marks, ids, [bag]).tolist() == [4, 0, 1]


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("bad", [-1, 2])
def test_ids_outside_are_refused(bad: int, kernels: str) -> None:
    mark = torch.ones(2, dtype=torch.uint8)
    with pytest.raises(IndexOutOfRange, match=f"id {bad}, the table has 2 rows"):
        load(kernels).count_marked([mark], torch.tensor([[0], [bad]]))
    with pytest.raises(IndexOutOfRange):
        bag = (torch.tensor([bad]), torch.tensor([0, 1]))
        load(kernels).count_marked([mark], torch.zeros(1, 0, dtype=torch.int32), [bag])
