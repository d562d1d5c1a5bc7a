"""The scout's pass against the reference, and its hashed lookups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from tests.backends import BACK_ENDS, for_each_back_end, load

from slipstream.kernels import reference, registry


@for_each_back_end(examples=25, interpreted=6)
def test_pass_equals_the_reference(kernels: Any, data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([0, 1, 7, 20]))
    features, dense = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 2))
    bag, wide, seed = data.draw(st.booleans()), data.draw(st.booleans()), data.draw(st.integers(0, 5))
    draw = torch.Generator().manual_seed(seed)
    # Columns of a wider tensor: not contiguous. Few ids: many duplicates.
    ids = torch.randint(0, 5, (size, features + 2), generator=draw, dtype=torch.int64 if wide else torch.int32)
    ids = ids[:, 1 : features + 1]
    lengths = torch.randint(0, 3, (size,), generator=draw)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    bags = [(torch.randint(0, 4, (int(lengths.sum()),), generator=draw).int(), offsets)] if bag else []
    slots, starts = kernels.hash_lookups(ids, bags, 8)
    assert starts[-1] == slots.numel() == size * features + (int(lengths.sum()) if bag else 0)
    assert slots.numel() == 0 or (int(slots.min()) >= 0 and int(slots.max()) < 256)
    columns = 3 * torch.randn(size, dense, generator=draw)
    labels = (torch.rand(size, generator=draw) < 0.4).float()
    learn = torch.rand(size, generator=draw) < 0.7 if seed % 2 else None
    tables = [torch.zeros(256 + 1 + dense, 4) for _ in range(2)]
    for _ in range(2):
        ours = kernels.scout(tables[0], slots, starts, columns, labels, learn, 0.2)
        theirs = reference.scout(tables[1], slots, starts, columns, labels, learn, 0.2)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(tables[0], tables[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_an_id_has_a_slot_of_its_own_in_each_feature_whatever_surrounds_it(kernels: str) -> None:
    alone, _ = load(kernels).hash_lookups(torch.tensor([[7]]), [], 20)
    both, _ = load(kernels).hash_lookups(torch.tensor([[7, 7], [7, 3]], dtype=torch.int32), [], 20)
    assert alone[0] == both[0] == both[2]
    assert both[0] != both[1]
    assert torch.equal(both, registry.hash_lookups(torch.tensor([[7, 7], [7, 3]]), [], 20)[0])


def test_labels_of_a_batch_do_not_reach_its_predictions() -> None:
    """Learning at once, the first label of a group would push the others' predictions the wrong way."""
    slots, starts = registry.hash_lookups(torch.zeros(3, 1, dtype=torch.int32), [], 8)
    table, learn, dense = torch.zeros(257, 4), torch.ones(3, dtype=torch.bool), torch.zeros(3, 0)
    labels = torch.tensor([1.0, 0.0, 0.0])
    probability, seen, loss = registry.scout(table, slots, starts, dense, labels, learn, 0.2)
    assert probability.tolist() == [0.5, 0.5, 0.5]
    assert seen.tolist() == [0.0, 0.0, 0.0]
    assert loss == pytest.approx(3 * 0.6931472)
    # By hand: gradients -1/2, 1/2, 1/2, their squares 1/4 each added up before each step.
    weight = 0.2 * 0.5 * (1.25**-0.5 - 1.5**-0.5 - 1.75**-0.5)
    assert table[int(slots[0])].tolist() == pytest.approx([weight, 0.75, 3.0, 0.0])
    assert table[256].tolist() == pytest.approx([weight, 0.75, 0.0, 0.0])
