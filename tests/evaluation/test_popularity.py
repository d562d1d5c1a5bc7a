import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from slipstream.evaluation import popularity_buckets, score_by_popularity


def test_head_holds_half_torso_up_to_nine_tenths():
    assert popularity_buckets(np.array([0, 10, 50, 40, 0])).tolist() == [2, 2, 0, 1, 2]


@given(st.lists(st.integers(0, 100), min_size=1, max_size=50))
def test_buckets_follow_popularity(counts):
    counts = np.array(counts)
    buckets = popularity_buckets(counts)
    order = np.argsort(-counts, kind="stable")
    assert (np.diff(buckets[order].astype(int)) >= 0).all()
    assert (buckets[counts == 0] == 2).all()
    total = counts.sum()
    if total:
        assert counts[buckets == 0].sum() >= total / 2
        assert counts[buckets <= 1].sum() >= 0.9 * total - 1e-9


def test_samples_are_scored_with_their_row():
    rows = np.array([2, 2, 3, 3, 1, 1])
    labels = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    logits = np.array([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    scores = score_by_popularity(rows, np.array([0, 10, 50, 40]), labels, logits)
    assert scores["head"].auc == 1.0
    assert scores["torso"].auc == 0.0
    assert scores["tail"].auc is None
    assert sum(part.samples for part in scores.values()) == 6
