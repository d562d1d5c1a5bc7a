"""SlipstreamClassifier: scikit-learn's own checks, and what they do not cover."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder
from sklearn.utils.estimator_checks import estimator_checks_generator

from slipstream.errors import ConfigError
from slipstream.estimator import SlipstreamClassifier

EXPECTED_TO_FAIL = {
    "check_sample_weight_equivalence_on_dense_data": "a sample of weight 2 is in one step, repeated it is in two",
}

# Enough steps on the few samples of the checks.
CHECKS = list(
    estimator_checks_generator(
        SlipstreamClassifier(epochs=40, batch_size=16, hidden=(16,), learning_rate=0.01, random_state=0),
        legacy=True,
        expected_failed_checks=EXPECTED_TO_FAIL,
        mark="xfail",
    )
)


def _name(value: Any) -> str:
    """Of an estimator or a check; Python's own name of a function changes from process to process."""
    return value.func.__name__ if isinstance(value, functools.partial) else type(value).__name__


@pytest.mark.parametrize(
    ("given", "categorical"),
    [((), []), (None, []), ([2, 0], [0, 2]), ([-1, 2], [2]), ([False, False, True], [2]), (np.array([1]), [1])],
)
def test_columns_by_position_or_by_mask(given: Any, categorical: list[int]) -> None:
    X, y = np.arange(12.0).reshape(4, 3), [0, 1, 0, 1]
    assert SlipstreamClassifier(given).fit(X, y)._categorical == categorical


@pytest.mark.parametrize("given", [[3], [-4], [1.5], ["a"], [True], [[0, 1]], 1])
def test_columns_that_there_are_not(given: Any) -> None:
    X, y = np.arange(12.0).reshape(4, 3), [0, 1, 0, 1]
    with pytest.raises(ValueError, match="categorical_features"):
        SlipstreamClassifier(given).fit(X, y)


@pytest.mark.parametrize(("estimator", "check"), CHECKS, ids=_name)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def clicks(samples: int = 6000) -> tuple[np.ndarray, np.ndarray]:
    """A user and an item with an effect each (as texts' codes, any whole numbers), and a number."""
    draw = np.random.default_rng(0)
    user, item = draw.integers(0, 80, samples), draw.integers(0, 50, samples)
    number = draw.normal(size=samples)
    logit = draw.normal(size=80)[user] + draw.normal(size=50)[item] + number
    return np.stack([user * 1000 - 7, item, number], 1), (logit + draw.logistic(size=samples) > 0)


def test_categories_are_learned_and_skipping_is_reported() -> None:
    X, y = clicks()
    plain = SlipstreamClassifier([0, 1], epochs=6, batch_size=256, embedding_lr=0.02, random_state=0)
    full = plain.fit(X[:5000], y[:5000])
    auc = roc_auc_score(y[5000:], full.predict_proba(X[5000:])[:, 1])
    blind = clone(plain).set_params(categorical_features=[]).fit(X[:5000], y[:5000])
    assert auc > 0.8 > roc_auc_score(y[5000:], blind.decision_function(X[5000:]))
    assert full.report_.share_of_inputs_trained == 1.0
    half = clone(plain).set_params(policy={"name": "random", "budget": 0.5}).fit(X[:5000], y[:5000])
    assert half.report_.share_of_inputs_trained == pytest.approx(0.5, abs=0.03)
    assert half.n_iter_ < 0.6 * full.n_iter_ and roc_auc_score(y[5000:], half.decision_function(X[5000:])) > 0.7


@pytest.mark.parametrize("epochs", [1, 3])
def test_importance_keeps_the_predictions_at_the_rate_of_the_labels(epochs: int) -> None:
    X, y = clicks(20_000)
    rare = y & (np.random.default_rng(1).random(len(y)) < 0.2)
    policy = {"name": "importance", "budget": 0.4, "warmup_samples": 2000, "bits": 10}
    model = SlipstreamClassifier(
        [0, 1], epochs=epochs, batch_size=128, learning_rate=0.01, embedding_lr=0.02, policy=policy, random_state=0
    )
    weights = np.where(X[:, 2] > 0, 2.0, 1.0)
    model.fit(X, rare, sample_weight=weights)
    assert model.report_.details["corrected_by"] == ("odds" if epochs == 1 else "odds, then weights")
    rate = float((rare * weights).sum() / weights.sum())
    predicted = float((model.predict_proba(X)[:, 1] * weights).sum() / weights.sum())
    # Without what corrects for the choice it would be twice as high.
    assert predicted == pytest.approx(rate, rel=0.25)


def test_one_seed_one_model_and_the_callers_draws_are_left_alone() -> None:
    import torch

    X, y = clicks(500)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, second = (SlipstreamClassifier([0], random_state=1).fit(X, y).decision_function(X) for _ in range(2))
    assert np.array_equal(first, second) and torch.equal(torch.random.get_rng_state(), before)


def test_a_category_not_seen_before_has_a_row_of_its_own() -> None:
    X, y = clicks(500)
    model = SlipstreamClassifier([0, 1], random_state=1).fit(X, y)
    strange = X[:2].copy()
    strange[:, 0] = [5e9, -5e9]
    assert model._inputs(strange).ids[:, 0].tolist() == [0, 0] and np.isfinite(model.predict_proba(strange)).all()


def test_in_a_pipeline_with_texts_and_cross_validation() -> None:
    X, y = clicks(800)
    texts = np.array([[f"u{user:.0f}", f"i{item:.0f}"] for user, item, _ in X])
    encode = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    scores = cross_val_score(make_pipeline(encode, SlipstreamClassifier([0, 1], random_state=0)), texts, y, cv=2)
    assert scores.shape == (2,)


def test_an_unknown_policy_is_named() -> None:
    X, y = clicks(100)
    with pytest.raises(ConfigError, match="'nonsense'"):
        SlipstreamClassifier(policy="nonsense").fit(X, y)


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_categories_that_float64_confuses_are_refused(dtype: Any) -> None:
    X = np.array([[1, 2**53 - 1], [2, 2**60], [3, 2**60 + 1], [4, 5]], dtype=dtype)
    with pytest.raises(ValueError, match=r"row 1 of column 1 is 2\^53 or more.*OrdinalEncoder"):
        SlipstreamClassifier(categorical_features=[1]).fit(X, [0, 1, 0, 1])
    SlipstreamClassifier(categorical_features=[0], epochs=1).fit(X, [0, 1, 0, 1])


def test_a_column_that_did_not_vary_says_little_when_it_does() -> None:
    X = np.array([[0.1, i] for i in range(100)])
    model = SlipstreamClassifier(epochs=1, random_state=0).fit(X, np.arange(100) % 2)
    assert model.predict_proba([[0.2, 1.0]])[0] == pytest.approx(model.predict_proba([[0.1, 1.0]])[0], abs=0.2)


@pytest.mark.parametrize("policy", ["order", {"name": "slipstream", "budget": 0.5}])
def test_policies_that_plan_an_order_are_refused(policy: Any) -> None:
    X, y = np.arange(40.0).reshape(20, 2), np.arange(20) % 2
    with pytest.raises(ConfigError, match="plans the order of the samples, which fit shuffles"):
        SlipstreamClassifier([0], policy=policy).fit(X, y)


def test_fits_beside_each_other_are_those_of_one_alone() -> None:
    """Threads share torch's own generator."""
    draw = np.random.default_rng(0)
    X, y = draw.integers(0, 9, (400, 2)).astype(float), draw.integers(0, 2, 400)

    def fitted(seed: int) -> np.ndarray[Any, Any]:
        made = SlipstreamClassifier([0], epochs=3, batch_size=16, random_state=seed).fit(X, y)
        return made.decision_function(X)

    alone = [fitted(seed) for seed in range(4)]
    with ThreadPoolExecutor(2) as pool:
        for ours, beside in zip(alone, pool.map(fitted, range(4)), strict=True):
            assert np.array_equal(ours, beside)
