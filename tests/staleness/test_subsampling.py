"""Keep-probabilities by popularity: shares, monotony, and gates set from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.staleness.subsampling import set_gates, subsampling_cut


@given(
    st.lists(st.floats(2**-20, 2**80, width=32), min_size=1, max_size=50),
    st.floats(0.0, 0.9),
    st.sampled_from((0.25, 0.5, 1.0, 2.0)),
)
@settings(deadline=None)
def test_the_share_is_met_and_gates_fall_with_popularity(scores: list[float], skip: float, exponent: float) -> None:
    score = torch.tensor(scores, dtype=torch.float32)
    cut = subsampling_cut([score[:20], score[20:]], skip, exponent)
    gate = torch.full((len(scores),), 7, dtype=torch.uint8)
    assert set_gates(gate, score, cut) == int((gate != 255).sum())
    p = np.where(gate.numpy() == 255, 1.0, gate.numpy() / 256)
    found = float((score.double().numpy() * (1 - p)).sum() / score.double().sum())
    assert found == pytest.approx(cut.skipped_share, abs=1e-4)
    assert found == pytest.approx(skip, abs=0.004)  # gates are multiples of 1/256, and 255 stands for 1
    order = score.argsort()
    assert (np.diff(p[order.numpy()]) <= 0).all()


def test_the_exponent_says_who_bears_it() -> None:
    scores = [torch.tensor([1.0] * 8 + [4.0, 16.0])]
    for exponent in (0.5, 1.0):
        cut = subsampling_cut(scores, 0.5, exponent)
        gate = torch.empty(10, dtype=torch.uint8)
        set_gates(gate, scores[0], cut)
        p = torch.where(gate == 255, 1.0, gate / 256)
        assert float(p[8] / p[9]) == pytest.approx(4**exponent if float(p[8]) < 1 else float(p[8] / p[9]), rel=0.1)
        assert cut.thinned_share == pytest.approx(float(scores[0][gate < 255].sum() / 28))


def test_rows_never_looked_up_stay_open_and_nothing_to_skip_opens_all() -> None:
    scores = torch.tensor([0.0, 5.0])
    gate = torch.zeros(2, dtype=torch.uint8)
    assert set_gates(gate, scores, subsampling_cut([scores], 0.5, 1.0)) == 1
    assert gate.tolist() == [255, 128]
    assert set_gates(gate, scores, subsampling_cut([scores], 0.0, 1.0)) == 0 and gate.tolist() == [255, 255]
    assert subsampling_cut([torch.zeros(3)], 0.5, 1.0).skipped_share == 0.0
