"""The reliability diagram: bins of equal size, whatever the order of samples that are predicted alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.evaluation.reliability import reliability


def test_bins_by_hand() -> None:
    found = reliability(np.array([1.0, 0.0, 1.0, 0.0, 0.0]), np.array([3.0, -1.0, 2.0, 1.0, -2.0]), bins=2)
    assert [(one.samples, one.observed) for one in found] == [(3, 0.0), (2, 1.0)]
    assert found[1].predicted == pytest.approx(1 / (1 + np.exp(-2.5)), abs=0.01)
    assert [one.samples for one in reliability(np.ones(2), np.zeros(2))] == [1, 1]
    assert reliability(np.ones(0), np.zeros(0)) == []


def test_a_constant_that_is_right_is_calibrated_in_every_bin_though_labels_drift() -> None:
    drifting = (np.random.default_rng(0).random(10_000) < np.linspace(0.1, 0.5, 10_000)).astype(np.float32)
    rate = float(drifting.mean(dtype=np.float64))
    found = reliability(drifting, np.full(10_000, np.log(rate / (1 - rate)), dtype=np.float32))
    assert [one.samples for one in found] == [1_000] * 10
    for one in found:
        assert one.observed == pytest.approx(rate) and one.predicted == pytest.approx(rate)


@settings(deadline=None, max_examples=200)
@given(predictions=st.lists(st.integers(-2, 2), max_size=40), bins=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_order_of_samples_says_nothing_and_no_label_is_lost(predictions: list[int], bins: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    logits, labels = np.array(predictions, dtype=np.float64), draw.random(len(predictions))
    found = reliability(labels, logits, bins=bins)
    mixed = draw.permutation(len(logits))
    other = reliability(labels[mixed], logits[mixed], bins=bins)
    assert [one.samples for one in other] == [one.samples for one in found]
    assert [one.observed for one in other] == pytest.approx([one.observed for one in found])
    assert sum(one.observed * one.samples for one in found) == pytest.approx(labels.sum())
    means = {value: labels[logits == value].mean() for value in logits}
    by_hand = np.array_split([means[value] for value in np.sort(logits)], bins)
    assert [one.observed for one in found] == pytest.approx([own.mean() for own in by_hand if len(own)])
