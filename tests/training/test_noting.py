from __future__ import annotations

import numpy as np
import pytest
import torch

from slipstream.training import noting
from slipstream.training.noting import mean_chances


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_mean_chances_are_those_of_each_bucket_however_the_rows_are_cut(monkeypatch, piece: int) -> None:
    monkeypatch.setattr(noting, "_PIECE", piece)
    draw = np.random.default_rng(0)
    buckets = draw.integers(0, 3, 100).astype(np.uint8)
    gate = torch.from_numpy(draw.integers(0, 256, 100).astype(np.uint8))
    expected = {
        name: float(gate[buckets == i].sum()) / (255 * int((buckets == i).sum()))
        for i, name in enumerate(noting.BUCKETS)
    }
    assert mean_chances(buckets, gate) == expected
    assert mean_chances(buckets, None) == {"head": 1.0, "torso": 1.0, "tail": 1.0}
    assert mean_chances(np.full(5, 2, dtype=np.uint8), torch.full((5,), 255, dtype=torch.uint8)) == {"tail": 1.0}
