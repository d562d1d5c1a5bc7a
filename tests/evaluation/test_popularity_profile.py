"""The profile of small data sets, by hand and against slow definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.data.schema import FeatureInfo
from slipstream.data.store import Store, StoreWriter
from slipstream.data.synthetic import SyntheticConfig, generate
from slipstream.errors import ConfigError
from slipstream.evaluation.popularity_profile import gini, popularity_profile


@pytest.fixture
def store(tmp_path) -> Store:
    """Eight samples; feature a with 5 rows, b with 4, bag t with 3."""
    features = [
        FeatureInfo(name="a", num_rows=5),
        FeatureInfo(name="b", num_rows=4),
        FeatureInfo(name="t", num_rows=3, multi_hot=True),
    ]
    ids = np.array([[1, 0], [1, 1], [1, 1], [2, 1], [3, 2], [3, 2], [3, 2], [1, 2]])
    bag = (np.array([1, 2, 1, 2, 2]), np.array([0, 2, 2, 2, 3, 3, 4, 5, 5]))
    with StoreWriter(tmp_path / "data", features) as writer:
        writer.append(ids, None, np.zeros(8), bags=[bag])
        return writer.commit()


def test_by_hand(store: Store) -> None:
    profile = popularity_profile(store, slices=2, top=(0.2, 1.0), top_fraction=0.5)
    a, b, t = profile.features
    assert [p.name for p in profile.features] == ["a", "b", "t"]
    assert profile.slice_starts == (0, 4)
    assert (a.num_rows, a.rows_seen, a.accesses, a.unknown_share) == (5, 3, 8, 0.0)
    assert a.top_shares == {0.2: 4 / 8, 1.0: 1.0}
    assert a.gini == pytest.approx(gini(np.array([0, 4, 1, 3, 0])))
    # First slice: row 1 three times, row 2 once; second: row 3 three times (new), row 1 once.
    assert a.overlap == (0.0,)
    assert a.overlap_first_last == 0.0
    assert a.new_rows == (0.5,)
    assert a.new_accesses == (0.75,)
    assert b.unknown_share == 1 / 8
    assert (t.accesses, t.rows_seen) == (5, 2)
    assert t.new_rows == (0.0,)
    overall = profile.overall
    assert (overall.num_rows, overall.rows_seen, overall.accesses) == (12, 8, 21)
    assert overall.unknown_share == pytest.approx(1 / 21)
    assert overall.top_shares[0.2] == pytest.approx((4 + 4) / 21)
    assert overall.zipf_exponent is None


def test_one_slice_and_a_range(store: Store) -> None:
    profile = popularity_profile(store, slices=1, start=4, stop=8)
    assert profile.num_samples == 4
    assert profile.features[0].rows_seen == 2
    assert profile.features[0].overlap == ()
    assert profile.features[0].overlap_first_last == 1.0


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_gini_is_half_the_mean_absolute_difference(counts: list[int]) -> None:
    x = np.array(counts)
    expected = np.abs(x[:, None] - x).mean() / (2 * x.mean()) if x.sum() else 0.0
    assert gini(x) == pytest.approx(expected, abs=1e-12)


def test_skew_and_drift_of_synthetic_data(tmp_path) -> None:
    def profile(name: str, drift: float):
        config = SyntheticConfig(
            num_samples=60_000,
            cardinalities=(30_000,),
            scale=1.0,
            zipf_exponent=1.2,
            popularity_drift=drift,
            num_dense=1,
        )
        return popularity_profile(generate(tmp_path / name, config), slices=4).overall

    still, moving = profile("still", 0.0), profile("moving", 100.0)
    assert still.zipf_exponent == pytest.approx(1.2, abs=0.2)
    assert min(still.overlap) > 0.7
    assert moving.overlap_first_last < 0.2
    assert moving.new_accesses[-1] > still.new_accesses[-1] + 0.2
    # The same skew at any moment; over the whole time drift evens it out.
    assert still.gini > moving.gini


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slices": 0}, r"slices must be in \[1, 8\]"),
        ({"slices": 9}, r"slices must be in \[1, 8\]"),
        ({"slices": 2, "top": (0.0,)}, r"top must be in \(0, 1\]"),
        ({"slices": 2, "top_fraction": 1.5}, r"top_fraction must be in \(0, 1\]"),
        ({"start": 5, "stop": 5}, "range"),
        ({"stop": 9}, "range"),
    ],
)
def test_nonsense_is_refused(store: Store, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        popularity_profile(store, **settings)
