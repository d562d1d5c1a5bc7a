"""How many inputs the scout of ``importance`` predicts before it learns from them."""

from __future__ import annotations

import torch

from slipstream.staleness.surprise import AT_ONCE, Scout


def test_a_large_batch_is_learned_in_pieces() -> None:
    torch.manual_seed(0)
    size = 4 * AT_ONCE - 48
    ids = torch.randint(0, 5, (size, 3), dtype=torch.int32)
    bag = (torch.randint(0, 9, (2 * size,)), torch.arange(0, 2 * size + 1, 2))
    labels = (torch.rand(size) < 0.1 + 0.2 * ids[:, 0]).float()
    dense = torch.randn(size, 2)
    whole, pieces = Scout(bits=10), Scout(bits=10)
    probability, seen = whole.predict_and_learn(ids, [bag], dense, labels)
    parts = []
    for a in range(0, size, AT_ONCE):
        b = min(a + AT_ONCE, size)
        bags = [(bag[0][2 * a : 2 * b], bag[1][: b - a + 1])]
        parts.append(pieces.predict_and_learn(ids[a:b], bags, dense[a:b], labels[a:b]))
    assert torch.equal(probability, torch.cat([part[0] for part in parts]))
    assert torch.equal(seen, torch.cat([part[1] for part in parts]))
    assert whole.inputs == size and abs(whole.loss - pieces.loss) < 1e-9
    assert whole.table is not None and pieces.table is not None and torch.equal(whole.table, pieces.table)
