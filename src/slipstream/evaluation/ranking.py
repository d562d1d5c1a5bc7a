"""Ranked lists of items: Recall@k, NDCG@k, and how widely the lists spread over the catalogue.

Letters of the shapes: ``U`` users, ``I`` items, ``K`` length of a list.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from slipstream.errors import ConfigError

Lists = npt.NDArray[np.int64]


class RankingScores(BaseModel):
    """Figures of the lists of some users."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: int
    """Users with at least one relevant item; the others count nowhere but in coverage and Gini."""
    recall: float
    """Mean over users of (relevant items in the list ÷ relevant items)."""
    ndcg: float
    """Mean over users of the discounted gain ÷ that of the best list possible."""
    coverage: float
    """Share of the catalogue that is in any list."""
    gini: float
    """Inequality of how often items are listed, 0 equal to 1 one item only."""


def rank_items(
    users: Tensor,
    items: Tensor,
    k: int,
    *,
    item_bias: Tensor | None = None,
    exclude: Sequence[npt.NDArray[np.int64]] | None = None,
    block: int = 1024,
) -> Lists:
    """The ``k`` items with the greatest dot product for each user, best first.

    Args:
        users: ``[U, D]``.
        items: ``[I, D]``.
        k: Length of the lists.
        item_bias: ``[I]``, added to the products.
        exclude: For each user the items not to list, those of its training for example.
        block: Users scored at a time; memory is ``block · I`` floats.

    Returns:
        int64 ``[U, k]``.

    Raises:
        ConfigError: ``k`` is not between 1 and the number of items.
    """
    if not 1 <= k <= items.shape[0]:
        raise ConfigError(f"k must be between 1 and the {items.shape[0]} items, got {k}")
    lists = np.empty((users.shape[0], k), dtype=np.int64)
    with torch.no_grad():
        for first in range(0, users.shape[0], block):
            scores = users[first : first + block] @ items.T
            if item_bias is not None:
                scores = scores + item_bias
            if exclude is not None:
                for row, banned in enumerate(exclude[first : first + block]):
                    scores[row, torch.from_numpy(banned)] = -torch.inf
            lists[first : first + block] = scores.topk(k, dim=1).indices.numpy()
    return lists


def _hits(lists: Lists, relevant: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.bool_]:
    if len(lists) != len(relevant):
        raise ConfigError(f"{len(lists)} lists for {len(relevant)} users")
    return np.stack([np.isin(ranked, wanted) for ranked, wanted in zip(lists, relevant, strict=True)])


def _relevant_counts(relevant: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return np.array([np.unique(wanted).size for wanted in relevant], dtype=np.int64)


def recall_at_k(lists: Lists, relevant: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
    """For each user the relevant items in the list ÷ its relevant items; NaN for users without any.

    Args:
        lists: ``[U, K]``, distinct items, best first.
        relevant: Each user's relevant items.
    """
    counts = _relevant_counts(relevant)
    return np.where(counts > 0, _hits(lists, relevant).sum(1) / np.maximum(counts, 1), np.nan)


def ndcg_at_k(lists: Lists, relevant: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
    """For each user Σ 1 / log2(1 + rank of a hit) ÷ that of the best list; NaN for users without relevant items.

    Järvelin, Kekäläinen, ACM TOIS 2002, with gains of 0 and 1.

    Args:
        lists: ``[U, K]``, distinct items, best first.
        relevant: Each user's relevant items.
    """
    discounts = 1 / np.log2(np.arange(lists.shape[1]) + 2)
    counts = _relevant_counts(relevant)
    best = np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(counts, lists.shape[1])]
    gain = (_hits(lists, relevant) * discounts).sum(1)
    return np.where(counts > 0, gain / np.where(best > 0, best, 1), np.nan)


def coverage(lists: Lists, num_items: int) -> float:
    """Share of the catalogue's items that are in any list."""
    return np.unique(lists).size / num_items


def gini(lists: Lists, num_items: int) -> float:
    """Gini coefficient of how often each of the catalogue's items is listed: 0 all equally often, near 1 one only."""
    counts = np.sort(np.bincount(lists.ravel(), minlength=num_items)).astype(np.float64)
    total = counts.sum()
    if not total:
        return 0.0
    place = np.arange(1, num_items + 1)
    return float(((2 * place - num_items - 1) * counts).sum() / (num_items * total))


def score_lists(lists: Lists, relevant: Sequence[npt.NDArray[np.int64]], num_items: int) -> RankingScores:
    """All figures.

    Args:
        lists: ``[U, K]``, distinct items, best first.
        relevant: Each user's relevant items.
        num_items: Items in the catalogue.

    Raises:
        ConfigError: No user has a relevant item.
    """
    counts = _relevant_counts(relevant)
    if not counts.any():
        raise ConfigError("no user has a relevant item")
    return RankingScores(
        users=int((counts > 0).sum()),
        recall=float(np.nanmean(recall_at_k(lists, relevant))),
        ndcg=float(np.nanmean(ndcg_at_k(lists, relevant))),
        coverage=coverage(lists, num_items),
        gini=gini(lists, num_items),
    )
