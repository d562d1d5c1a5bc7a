import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from slipstream.errors import ConfigError
from slipstream.evaluation import coverage, gini, ndcg_at_k, rank_items, recall_at_k, score_lists


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_ndcg_and_recall_equal_their_definitions(seed, k):
    rng = np.random.default_rng(seed)
    scores, truth = rng.random((4, 12)), rng.random((4, 12)) < 0.3
    truth[:, 0] |= ~truth.any(1)
    lists = np.argsort(-scores, axis=1)[:, :k]
    relevant = [np.flatnonzero(row) for row in truth]
    assert ndcg_at_k(lists, relevant).mean() == pytest.approx(ndcg_score(truth, scores, k=k))
    expected = [len(set(ranked) & set(wanted)) / len(wanted) for ranked, wanted in zip(lists, relevant, strict=True)]
    assert recall_at_k(lists, relevant).tolist() == pytest.approx(expected)


def test_users_without_relevant_items_do_not_count():
    lists, relevant = np.array([[0, 1], [0, 1]]), [np.array([1]), np.array([], dtype=np.int64)]
    scores = score_lists(lists, relevant, 4)
    assert (scores.users, scores.recall, scores.coverage) == (1, 1.0, 0.5)
    assert scores.ndcg == pytest.approx(1 / np.log2(3))
    with pytest.raises(ConfigError, match="no user"):
        score_lists(lists, [relevant[1]] * 2, 4)


def test_gini_of_equal_and_of_single_items():
    assert gini(np.array([[0, 1], [2, 3]]), 4) == pytest.approx(0)
    assert gini(np.array([[0], [0]]), 4) == pytest.approx(0.75)
    assert coverage(np.array([[0], [0]]), 4) == 0.25


def test_ranking_leaves_out_what_is_excluded_and_adds_biases():
    users, items = torch.eye(3), torch.eye(3)
    bias = torch.tensor([0.0, 0.1, 0.2])
    banned = [np.array([0]), np.array([], dtype=np.int64), np.array([2])]
    lists = rank_items(users, items, 2, item_bias=bias, exclude=banned, block=2)
    assert lists.tolist() == [[2, 1], [1, 2], [1, 0]]
    with pytest.raises(ConfigError, match="between 1 and"):
        rank_items(users, items, 4)
