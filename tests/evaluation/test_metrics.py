import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit
from sklearn import metrics as sk

from slipstream.errors import DataError
from slipstream.evaluation import auc, calibration, learning_curve, log_loss, metrics, score
from slipstream.evaluation.metrics import probabilities

# Few distinct logits on purpose: ties are where AUCs differ.
samples = st.integers(2, 60).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float32, n, elements=st.sampled_from([0.0, 1.0])),
        hnp.arrays(np.float32, n, elements=st.one_of(st.integers(-3, 3).map(float), st.floats(-12, 12, width=32))),
    )
)


@pytest.mark.filterwarnings("error")
def test_probabilities_of_logits_of_any_size():
    logits = np.array([-np.inf, -1e30, -800.0, -3.0, 0.0, 3.0, 800.0, np.inf], dtype=np.float32)
    assert probabilities(logits) == pytest.approx(expit(logits.astype(np.float64)), rel=1e-14, abs=0.0)


@settings(max_examples=60, deadline=None)
@given(samples)
def test_auc_equals_sklearn(drawn):
    labels, logits = drawn
    if labels.min() == labels.max():
        assert auc(labels, logits) is None
    else:
        assert auc(labels, logits) == pytest.approx(sk.roc_auc_score(labels, logits), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(samples)
def test_log_loss_and_calibration_equal_their_definitions(drawn):
    labels, logits = drawn
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = sk.log_loss(labels, probability, labels=[0, 1])
    assert log_loss(labels, logits) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    if labels.any():
        assert calibration(labels, logits) == pytest.approx(probability.mean() / labels.mean())
    else:
        assert calibration(labels, logits) is None


def test_figures_do_not_depend_on_the_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    labels, logits = (rng.random(1000) < 0.3).astype(np.float32), rng.integers(-9, 9, 1000).astype(np.float32)
    whole = score(labels, logits)
    monkeypatch.setattr(metrics, "_PIECE", 7)
    assert score(labels, logits).model_dump() == pytest.approx(whole.model_dump(), rel=1e-13)
    assert whole.auc == pytest.approx(sk.roc_auc_score(labels, logits), abs=1e-12)


def test_extreme_logits_neither_overflow_nor_tie():
    labels, logits = np.array([0.0, 1.0, 1.0]), np.array([999.0, 1000.0, -1000.0])
    assert auc(labels, logits) == 0.5
    assert log_loss(labels, logits) == pytest.approx((999 + 0 + 1000) / 3)


def test_nothing_scored_has_no_figures():
    empty = np.array([])
    assert score(empty, empty).model_dump() == {"samples": 0, "auc": None, "log_loss": None, "calibration": None}


@pytest.mark.filterwarnings("error")
def test_infinite_logits_have_finite_figures():
    labels, logits = np.array([0.0, 1.0]), np.array([-np.inf, np.inf], dtype=np.float32)
    assert score(labels, logits).model_dump() == {"samples": 2, "auc": 1.0, "log_loss": 0.0, "calibration": 1.0}
    wrong = log_loss(labels, -logits)
    assert wrong is not None and 1e38 < wrong < np.inf


def test_bad_logits_are_named():
    with pytest.raises(DataError, match="NaN"):
        auc(np.array([0.0, 1.0]), np.array([np.nan, 0.0]))
    with pytest.raises(DataError, match="NaN"):
        probabilities(np.array([0.0, np.nan]))
    with pytest.raises(DataError, match="one length"):
        auc(np.array([0.0, 1.0]), np.array([0.0]))


def test_learning_curve_windows_cover_everything_once():
    labels = np.tile([0.0, 1.0], 50)
    curve = learning_curve(labels, labels, start=7, points=8)
    assert [point.samples for point in curve] == [7 + 100 * i // 8 for i in range(1, 9)]
    assert all(point.auc == 1.0 for point in curve)
    assert len(learning_curve(labels[:3], labels[:3], points=40)) == 3
