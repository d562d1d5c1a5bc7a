"""Radix selection against the obvious way: sort and sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.errors import ConfigError
from slipstream.staleness import share_cut


def by_sorting(values: np.ndarray, share: float) -> float:
    """The smallest score among the fewest most popular rows that hold the share."""
    falling = -np.sort(-values.astype(np.float64))
    reached = np.cumsum(falling)
    return float(falling[np.searchsorted(reached, reached[-1] * share * (1 - 1e-12))])


@given(
    counts=st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 5), min_size=1, max_size=200),
    share=st.floats(0.001, 1.0),
)
@settings(max_examples=50, deadline=None)
def test_integers_match_sorting(counts: list[int], share: float) -> None:
    values = np.array(counts, dtype=np.int32)
    cut = share_cut([torch.from_numpy(values)], share)
    if values.sum() == 0:
        assert cut == (math.inf, 0.0, 0)
        return
    assert cut.threshold == by_sorting(values, share)
    kept = values[values >= cut.threshold]
    assert cut.kept_rows == kept.size
    assert cut.kept_share == pytest.approx(kept.sum(dtype=np.float64) / values.sum(dtype=np.float64))
    assert cut.kept_share >= share - 1e-9


@given(seed=st.integers(0, 1000), share=st.floats(0.01, 0.999), tables=st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_several_float_tables_match_sorting(seed: int, share: float, tables: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.pareto(0.7, size=rng.integers(1, 300)).astype(np.float32) for _ in range(tables)]
    cut = share_cut([torch.from_numpy(part) for part in parts], share)
    assert cut.threshold == by_sorting(np.concatenate(parts), share)


def test_rows_without_accesses_are_never_kept() -> None:
    cut = share_cut([torch.tensor([0.0, 3.0, 0.0, 1.0])], 1.0)
    assert (cut.threshold, cut.kept_rows, cut.kept_share) == (1.0, 2, 1.0)


def test_ties_share_one_fate() -> None:
    cut = share_cut([torch.tensor([10, 1, 1, 1], dtype=torch.int32)], 0.8)
    assert cut.kept_rows == 4
    assert cut.kept_share == 1.0


def test_more_rows_than_one_chunk() -> None:
    scores = torch.ones(2**20 + 5)
    scores[-1] = 3.0e6
    cut = share_cut([scores], 0.7)
    assert (cut.threshold, cut.kept_rows) == (3.0e6, 1)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, math.nan])
def test_share_out_of_range(share: float) -> None:
    with pytest.raises(ConfigError, match=r"share must be in \(0, 1\]"):
        share_cut([torch.ones(3)], share)


def test_mixed_dtypes() -> None:
    with pytest.raises(ConfigError, match="float32"):
        share_cut([torch.ones(3), torch.ones(3, dtype=torch.int32)], 0.5)
