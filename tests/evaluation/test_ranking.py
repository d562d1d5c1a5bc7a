import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from slipstream.errors import ConfigError
from slipstream.evaluation import (
    ItemSets,
    coverage,
    diversity_of_highest,
    gini,
    ndcg_at_k,
    rank_items,
    recall_at_k,
    score_lists,
)
from slipstream.evaluation.ranking import recall_by_popularity


def sets(*lists: list[int]) -> ItemSets:
    return ItemSets.of_lists([np.array(items, dtype=np.int64) for items in lists])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_ndcg_and_recall_equal_their_definitions(seed, k):
    rng = np.random.default_rng(seed)
    scores, truth = rng.random((4, 12)), rng.random((4, 12)) < 0.3
    truth[:, 0] |= ~truth.any(1)
    lists = np.argsort(-scores, axis=1)[:, :k]
    relevant = [np.flatnonzero(row) for row in truth]
    assert ndcg_at_k(lists, ItemSets.of_lists(relevant)).mean() == pytest.approx(ndcg_score(truth, scores, k=k))
    expected = [len(set(ranked) & set(wanted)) / len(wanted) for ranked, wanted in zip(lists, relevant, strict=True)]
    assert recall_at_k(lists, ItemSets.of_lists(relevant)).tolist() == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9))
def test_lists_are_those_of_a_full_sort_whatever_the_block(seed, k, block):
    rng = np.random.default_rng(seed)
    users, items = torch.from_numpy(rng.normal(size=(7, 3))).float(), torch.from_numpy(rng.normal(size=(9, 3))).float()
    bias = torch.from_numpy(rng.normal(size=9)).float()
    banned = [np.flatnonzero(row) for row in rng.random((7, 9)) < 0.4]
    lists = rank_items(users, items, k, item_bias=bias, exclude=ItemSets.of_lists(banned), block=block)
    for user, ranked in enumerate(lists):
        scores = (users[user] @ items.T + bias).numpy()
        scores[banned[user]] = -np.inf
        left = 9 - banned[user].size
        expected = np.argsort(-scores)[: min(k, left)].tolist()
        assert ranked.tolist() == expected + [-1] * (k - len(expected))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 20), max_size=6), min_size=1, max_size=6), st.integers(0, 99))
def test_item_sets_are_sets(lists, seed):
    ours = sets(*lists)
    assert len(ours) == len(lists) and ours.counts.tolist() == [len(set(items)) for items in lists]
    split = np.split(ours.items, ours.offsets[1:-1])
    assert [part.tolist() for part in split] == [sorted(set(items)) for items in lists]
    chosen = np.random.default_rng(seed).integers(0, len(lists), 4)
    some = ours.select(chosen)
    assert [part.tolist() for part in np.split(some.items, some.offsets[1:-1])] == [
        sorted(set(lists[user])) for user in chosen
    ]
    other = [items[::2] for items in lists]
    left = ours.without(sets(*other))
    assert [part.tolist() for part in np.split(left.items, left.offsets[1:-1])] == [
        sorted(set(items) - set(gone)) for items, gone in zip(lists, other, strict=True)
    ]


def test_users_without_relevant_items_do_not_count():
    lists, relevant = np.array([[0, 1], [0, 1]]), sets([1], [])
    scores = score_lists(lists, relevant, 4)
    assert (scores.k, scores.users, scores.recall, scores.coverage) == (2, 1, 1.0, 0.5)
    assert scores.ndcg == pytest.approx(1 / np.log2(3))
    with pytest.raises(ConfigError, match="no user"):
        score_lists(lists, sets([], []), 4)


def test_recall_of_head_torso_tail_and_new_items_by_hand():
    # Accesses 10, 6, 3, 1, 0: item 0 holds half of them (head), 1 and 2 the next up to 90 % (torso), 3 and 4 the rest.
    accesses = np.array([10, 6, 3, 1, 0])
    lists = np.array([[0, 3], [2, 4], [0, 1]])
    relevant = sets([0, 1], [2, 4], [4])
    assert recall_by_popularity(lists, relevant, accesses) == {"head": 1.0, "torso": 0.5, "tail": 0.5, "new": 0.5}
    assert recall_by_popularity(lists, sets([0], [], []), accesses)["new"] is None


def test_gini_of_equal_and_of_single_items():
    assert gini(np.array([[0, 1], [2, 3]]), 4) == pytest.approx(0)
    assert gini(np.array([[0], [0]]), 4) == pytest.approx(0.75)
    assert gini(np.array([[0, -1], [0, -1]]), 4) == pytest.approx(0.75), "an unfilled place is no item"
    assert coverage(np.array([[0, -1], [0, -1]]), 4) == 0.25
    counts = np.array([0, 0, 1, 5, 2, 9])
    pairs = np.abs(counts[:, None] - counts).sum() / (2 * counts.size * counts.sum())
    assert gini(np.repeat(np.arange(6), counts), 6) == pytest.approx(pairs), "half the relative mean difference"


def test_gini_where_items_times_listings_are_more_than_int64_holds():
    assert gini(np.repeat([0, 1], [5_000, 15_000]), 10**15) == pytest.approx(1)


def test_diversity_of_the_highest_predictions_by_hand():
    rows, logits = np.array([7, 7, 3, 9, 9, 5]), np.array([3.0, 2.0, 1.0, 0.0, -1.0, -2.0])
    found = diversity_of_highest(rows, logits, share=0.5)
    assert (found.coverage, found.gini) == (0.5, pytest.approx(gini(np.array([0, 0, 1]), 4)))
    tied = diversity_of_highest(rows, np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0]), share=0.5)
    assert (tied.coverage, tied.gini) == (found.coverage, found.gini), "of equal predictions the earlier ones"


def test_ranking_leaves_out_what_is_excluded_and_adds_biases():
    users, items = torch.eye(3), torch.eye(3)
    bias = torch.tensor([0.0, 0.1, 0.2])
    lists = rank_items(users, items, 2, item_bias=bias, exclude=sets([0], [], [2]), block=2)
    assert lists.tolist() == [[2, 1], [1, 2], [1, 0]]
    with pytest.raises(ConfigError, match="between 1 and"):
        rank_items(users, items, 4)
    with pytest.raises(ConfigError, match="2 users"):
        rank_items(users, items, 1, exclude=sets([0], []))
    with pytest.raises(ConfigError, match="3 lists for 1 users"):
        recall_at_k(lists, sets([0]))
