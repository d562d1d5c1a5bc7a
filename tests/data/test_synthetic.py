"""The generator: reproducible however it is asked, and with the properties its settings name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from slipstream.data.store import Store
from slipstream.data.synthetic import PRESETS, Generator, SyntheticConfig, generate
from slipstream.errors import ConfigError, DataError

SMALL = SyntheticConfig(num_samples=5_000, cardinalities=(3, 40, 5_000), scale=1.0, num_dense=3)


@given(cut=st.integers(1, 999), drift=st.sampled_from([0.0, 300.0]))
@example(cut=1, drift=0.0)
@example(cut=999, drift=0.0)
@example(cut=999, drift=300.0)
@settings(max_examples=15, deadline=None)
def test_samples_do_not_depend_on_how_they_are_asked_for(cut: int, drift: float) -> None:
    generator = Generator(SMALL.model_copy(update={"popularity_drift": drift, "effect_drift": drift}))
    whole = generator.samples(0, 1000)
    for column, first, second in zip(whole, generator.samples(0, cut), generator.samples(cut, 1000), strict=True):
        np.testing.assert_array_equal(column, np.concatenate([first, second]))


def test_chunks_are_the_samples_in_order() -> None:
    generator = Generator(SMALL)
    chunks = list(generator.chunks(size=1_300, threads=3))
    assert [len(chunk.labels) for chunk in chunks] == [1300, 1300, 1300, 1100]
    np.testing.assert_array_equal(np.concatenate([c.ids for c in chunks]), generator.samples(0, 5_000).ids)


def test_longer_data_begins_with_the_shorter() -> None:
    long = Generator(SMALL.model_copy(update={"num_samples": 9_000})).samples(0, 2_000)
    short = Generator(SMALL).samples(0, 2_000)
    np.testing.assert_array_equal(long.ids, short.ids)
    np.testing.assert_array_equal(long.labels, short.labels)


def test_seeds_make_other_teachers() -> None:
    first, second = (Generator(SMALL.model_copy(update={"seed": seed})).samples(0, 500) for seed in (0, 1))
    assert (first.ids != second.ids).any()
    assert (first.dense != second.dense).any()


def test_store_holds_the_samples(tmp_path) -> None:
    store = generate(tmp_path / "data", SMALL)
    expected = Generator(SMALL).samples(0, 5_000)
    assert [(f.name, f.num_rows) for f in store.features] == [("C1", 4), ("C2", 41), ("C3", 5_001)]
    np.testing.assert_array_equal(store.ids.numpy(), expected.ids)
    np.testing.assert_array_equal(store.dense.numpy(), expected.dense)
    np.testing.assert_array_equal(store.labels.numpy(), expected.labels)
    assert (np.diff(store.time.numpy()) >= 0).all()
    assert SyntheticConfig(**Store.open(tmp_path / "data").manifest.provenance["config"]) == SMALL
    with pytest.raises(DataError):
        generate(tmp_path / "data", SMALL)


@pytest.mark.parametrize("base_rate", [0.02, 0.25, 0.6])
def test_base_rate(base_rate: float) -> None:
    labels = (
        Generator(SyntheticConfig(num_samples=100_000, base_rate=base_rate, scale=0.001)).samples(0, 100_000).labels
    )
    # Four standard errors of the sample, and as much of the pilot's.
    assert labels.mean() == pytest.approx(base_rate, abs=8 * (base_rate * (1 - base_rate) / 1e5) ** 0.5)


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0, 1.3])
def test_rank_frequencies_follow_the_truncated_pareto(exponent: float) -> None:
    rows, samples = 50, 200_000
    config = SyntheticConfig(num_samples=samples, cardinalities=(rows,), scale=1.0, zipf_exponent=exponent)
    counts = np.bincount(Generator(config).samples(0, samples).ids[:, 0], minlength=rows + 1)
    assert counts[0] == 0
    edges = np.arange(1, rows + 2, dtype=float)
    power = 1 - exponent
    cumulative = np.log(edges) / np.log(rows + 1) if exponent == 1 else (edges**power - 1) / ((rows + 1) ** power - 1)
    expected = np.diff(cumulative) * samples
    observed = np.sort(counts[1:])[::-1]
    assert ((observed - np.sort(expected)[::-1]) ** 2 / expected).sum() < 3 * rows


def test_large_tables_stay_in_range() -> None:
    config = SyntheticConfig(
        num_samples=20_000, cardinalities=(2**31 - 2, 1), scale=1.0, zipf_exponent=0.0, popularity_drift=1e5
    )
    ids = Generator(config).samples(0, 20_000).ids
    assert ids.min() >= 1
    assert (ids[:, 1] == 1).all()
    assert ids[:, 0].max() > 2**30


def test_parts_of_the_logit_have_the_spread_asked_for() -> None:
    config = SyntheticConfig(
        num_samples=100_000, scale=0.001, first_order_std=0.8, pairwise_std=0.6, dense_std=0.5, base_rate=0.5
    )
    probability = Generator(config).samples(0, 100_000).probability
    logits = np.log(probability / (1 - probability))
    assert logits.std() == pytest.approx((0.64 + 0.36 + 0.25) ** 0.5, rel=0.03)


def test_dense_features_are_standard_normal_and_inform() -> None:
    config = SyntheticConfig(
        num_samples=50_000,
        cardinalities=(5,),
        scale=1.0,
        first_order_std=0.0,
        pairwise_std=0.0,
        dense_std=1.5,
        num_dense=5,
    )
    samples = Generator(config).samples(0, 50_000)
    np.testing.assert_allclose(samples.dense.mean(0), 0.0, atol=0.03)
    np.testing.assert_allclose(np.cov(samples.dense.T), np.eye(5), atol=0.04)
    assert roc_auc_score(samples.labels, samples.probability) > 0.75


def test_the_tail_matters_less_with_shrinkage() -> None:
    # One feature alone: the spread of the logits over its rare rows.
    def spread_of_rare_rows(shrinkage: float) -> float:
        config = SyntheticConfig(
            num_samples=50_000,
            cardinalities=(10_000,),
            scale=1.0,
            num_dense=0,
            pairwise_std=0.0,
            tail_shrinkage=shrinkage,
        )
        samples = Generator(config).samples(0, 50_000)
        logits = np.log(samples.probability / (1 - samples.probability))
        counts = np.bincount(samples.ids[:, 0])[samples.ids[:, 0]]
        return float(logits[counts <= 2].std() / logits[counts > 100].std())

    assert spread_of_rare_rows(1.0) < 0.3 * spread_of_rare_rows(0.0)


def test_popularity_drift_replaces_popular_rows() -> None:
    def overlap(drift: float) -> float:
        config = SyntheticConfig(
            num_samples=100_000, cardinalities=(20_000,), scale=1.0, num_dense=1, popularity_drift=drift
        )
        generator = Generator(config)
        ends = [generator.samples(0, 20_000), generator.samples(80_000, 100_000)]
        first, last = (np.argsort(-np.bincount(part.ids[:, 0], minlength=20_001))[:50] for part in ends)
        return float(np.isin(last, first).mean())

    assert overlap(0.0) > 0.8
    # In these 80,000 samples a place changes hands 0.08 · 10 times: some four in five have.
    assert overlap(10.0) < 0.6
    assert overlap(100.0) < 0.1


def test_effect_drift_changes_what_rows_mean() -> None:
    def correlation(drift: float) -> float:
        config = SyntheticConfig(
            num_samples=100_000, cardinalities=(50,), scale=1.0, num_dense=0, pairwise_std=0.0, effect_drift=drift
        )
        generator = Generator(config)
        effects = []
        for part in (generator.samples(0, 5_000), generator.samples(95_000, 100_000)):
            logits = np.log(part.probability / (1 - part.probability))
            sums, counts = np.bincount(part.ids[:, 0], logits, 51), np.bincount(part.ids[:, 0], minlength=51)
            effects.append((sums / np.maximum(counts, 1))[1:])
        return float(np.corrcoef(*effects)[0, 1])

    assert correlation(0.0) == pytest.approx(1.0)
    assert correlation(2.0) > 0.8
    assert abs(correlation(50.0)) < 0.5


def test_presets_and_changes() -> None:
    assert set(PRESETS) == {"default", "starved"}
    assert SyntheticConfig.preset("default") == SyntheticConfig()
    starved = SyntheticConfig.preset("starved", num_samples=10, base_rate=0.08)
    assert (starved.num_samples, starved.base_rate, starved.tail_shrinkage) == (10, 0.08, 0.0)
    assert sum(SyntheticConfig().rows) == pytest.approx(1.02e6, rel=0.01)
    assert min(SyntheticConfig().rows) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_rate": 1.0}, "base_rate"),
        ({"num_samples": 0}, "num_samples"),
        ({"scale": 0.0}, "scale"),
        ({"cardinalities": ()}, "1 to 256 features"),
        ({"cardinalities": (0, 5)}, r"in \[1, 2\^31 - 2\]"),
        ({"zipf_exponent": (1.0,)}, "one for each of 26 features"),
        ({"zipf_exponent": 5.0}, r"zipf_exponent must be in \[0, 4\]"),
        ({"first_order_std": 0.0, "pairwise_std": 0.0, "dense_std": 0.0}, "at least one of"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SyntheticConfig.preset("default", **changes)
    with pytest.raises(ValidationError):
        SyntheticConfig(**changes)


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="choose one of default, starved"):
        SyntheticConfig.preset("rich")  # type: ignore[arg-type]


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 5), (0, 5_001)])
def test_range_outside(start: int, stop: int) -> None:
    with pytest.raises(ConfigError, match="within"):
        Generator(SMALL).samples(start, stop)
