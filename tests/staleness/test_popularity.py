"""Counts against the definition, computed the slow way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.errors import ConfigError, IndexOutOfRange
from slipstream.staleness import DecayedCounts, ExactCounts, make_counts


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_exact_counts_are_lookups(dtype: torch.dtype) -> None:
    ids = torch.randint(0, 7, (5, 40), generator=torch.Generator().manual_seed(0))
    counts = ExactCounts(7)
    for row in ids.to(dtype):
        counts.add(row)
        counts.advance(1)
    assert torch.equal(counts.scores, torch.bincount(ids.reshape(-1), minlength=7).int())


def test_exact_counts_pass_the_limit_of_float32() -> None:
    counts = ExactCounts(1)
    counts.scores.fill_(2**24)
    counts.add(torch.zeros(3, dtype=torch.int32))
    assert int(counts.scores) == 2**24 + 3


def test_ids_outside_the_table() -> None:
    for counts in (ExactCounts(3), DecayedCounts(3, 1.0)):
        with pytest.raises(IndexOutOfRange):
            counts.add(torch.tensor([0, 3, -1]))


def test_strided_columns_are_counted() -> None:
    ids = torch.tensor([[0, 5], [1, 5], [0, 5]], dtype=torch.int32)
    for counts in (ExactCounts(6), DecayedCounts(6, 10.0)):
        counts.add(ids[:, 0])
        assert counts.scores.tolist() == [2, 1, 0, 0, 0, 0]


@given(half_life=st.floats(0.3, 50.0), steps=st.integers(1, 120), seed=st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_decayed_counts_follow_the_definition(half_life: float, steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = DecayedCounts(5, half_life)
    expected = np.zeros(5)
    for _ in range(steps):
        ids = rng.integers(0, 5, size=4)
        counts.add(torch.from_numpy(ids))
        np.add.at(expected, ids, 1.0)
        counts.advance(1)
        expected *= 0.5 ** (1 / half_life)
    # A short half-life rescales several times within these steps.
    np.testing.assert_allclose(counts.value().numpy(), expected, rtol=2e-5, atol=1e-9)
    assert counts.increment < 2.0**41


def test_a_long_pause_fades_everything() -> None:
    counts = DecayedCounts(2, 1.0)
    counts.add(torch.tensor([0, 0, 1]))
    counts.advance(1e6)
    assert torch.isfinite(counts.scores).all()
    counts.add(torch.tensor([1]))
    assert counts.value()[1] == pytest.approx(1.0)
    assert counts.value()[0] < 1e-6


@pytest.mark.parametrize("half_life", [None, 3.0])
def test_state_round_trip(half_life: float | None) -> None:
    first, second = make_counts(4, half_life), make_counts(4, half_life)
    first.add(torch.tensor([0, 1, 1]))
    first.advance(2)
    second.load_state_dict(first.state_dict())
    for counts in (first, second):
        counts.add(torch.tensor([3]))
    assert torch.equal(first.scores, second.scores)


def test_state_of_another_table() -> None:
    with pytest.raises(ConfigError, match="the state's popularity is"):
        ExactCounts(4).load_state_dict(ExactCounts(5).state_dict())
    with pytest.raises(ConfigError, match="half_life"):
        ExactCounts(4).load_state_dict(DecayedCounts(4, 1.0).state_dict())


@pytest.mark.parametrize("half_life", [0.0, -1.0, float("inf"), float("nan")])
def test_half_life_out_of_range(half_life: float) -> None:
    with pytest.raises(ConfigError, match="half_life"):
        DecayedCounts(3, half_life)
