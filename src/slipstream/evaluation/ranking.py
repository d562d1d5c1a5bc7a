"""Ranked lists of items: Recall@k, NDCG@k, and how widely the lists spread over the catalogue.

Letters of the shapes: ``U`` users, ``I`` items, ``K`` length of a list. A list that could not be filled ends in -1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.evaluation.item_sets import ItemSets
from slipstream.evaluation.popularity import BUCKETS, popularity_buckets

Lists = npt.NDArray[np.int64]
_SCORES = 1 << 23
"""Scores held at a time, 32 MiB."""


class RankingScores(BaseModel):
    """Figures of the lists of some users."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: int
    """Length of the lists."""
    users: int
    """Users with at least one relevant item; the others count nowhere but in coverage and Gini, if they have a list."""
    recall: float
    """Mean over users of (relevant items in the list ÷ relevant items)."""
    ndcg: float
    """Mean over users of the discounted gain ÷ that of the best list possible."""
    coverage: float
    """Share of the catalogue that is in any list."""
    gini: float
    """Inequality of how often items are listed, 0 equal to 1 one item only."""
    recall_by_popularity: dict[str, float | None] = {}
    """Recall of the relevant items of the head, the torso, the tail and of those new to the training (part of the
    tail), each over the users that have one; None where nobody has."""


def rank_items(
    users: Tensor,
    items: Tensor,
    k: int,
    *,
    item_bias: Tensor | None = None,
    exclude: ItemSets | None = None,
    block: int | None = None,
) -> Lists:
    """The ``k`` items with the greatest dot product for each user, best first.

    Which of equal scores come first is torch.topk's choice, and depends on how items are numbered: figures of a model
    that scores many items alike are chance.

    Args:
        users: float32 ``[U, D]``.
        items: float32 ``[I, D]``.
        k: Length of the lists.
        item_bias: float32 ``[I]``, added to the products; -inf leaves an item out for everyone.
        exclude: For each of the users the items not to list, those of its training for example.
        block: Users scored at a time; memory is ``block · I`` floats. None: so many that it is 32 MiB.

    Returns:
        int64 ``[U, k]``; -1 where a user has fewer items left.

    Raises:
        ConfigError: ``k`` is not between 1 and the number of items, or ``exclude`` is of other users.
    """
    count, catalogue = users.shape[0], items.shape[0]
    if not 1 <= k <= catalogue:
        raise ConfigError(f"k must be between 1 and the {catalogue} items, got {k}")
    if exclude is not None and len(exclude) != count:
        raise ConfigError(f"the items of {len(exclude)} users are left out, for {count} users")
    block = max(1, _SCORES // catalogue) if block is None else block
    lists = np.empty((count, k), dtype=np.int64)
    # One buffer for all blocks: fresh memory for each costs as much as the product.
    buffer = torch.empty(min(block, count), catalogue)
    left_out = None if exclude is None else exclude.counts
    with torch.no_grad():
        for first in range(0, count, block):
            last = min(first + block, count)
            scores = torch.mm(users[first:last], items.T, out=buffer[: last - first])
            if item_bias is not None:
                scores += item_bias
            if exclude is not None and left_out is not None:
                begin, end = exclude.offsets[first], exclude.offsets[last]
                rows = np.repeat(np.arange(last - first), left_out[first:last])
                banned = torch.from_numpy(rows * catalogue + exclude.items[begin:end])
                scores.view(-1).index_fill_(0, banned, -torch.inf)
            best = scores.topk(k, dim=1)
            lists[first:last] = best.indices.masked_fill(best.values == -torch.inf, -1).numpy()
    return lists


def _hits(lists: Lists, relevant: ItemSets) -> npt.NDArray[np.bool_]:
    """Which items of the lists are relevant, ``[U, K]``."""
    if len(lists) != len(relevant):
        raise ConfigError(f"{len(lists)} lists for {len(relevant)} users")
    width = int(max(lists.max(initial=0), relevant.items.max(initial=0))) + 1
    wanted = relevant.owners * width + relevant.items
    listed = np.arange(len(lists))[:, None] * width + lists
    return (np.isin(listed, wanted) if wanted.size else np.zeros(lists.shape, dtype=np.bool_)) & (lists >= 0)


def recall_at_k(lists: Lists, relevant: ItemSets) -> npt.NDArray[np.float64]:
    """For each user the relevant items in the list ÷ its relevant items; NaN for users without any.

    Args:
        lists: ``[U, K]``, distinct items, best first.
        relevant: Each user's relevant items.
    """
    counts = relevant.counts
    return np.where(counts > 0, _hits(lists, relevant).sum(1) / np.maximum(counts, 1), np.nan)


def ndcg_at_k(lists: Lists, relevant: ItemSets) -> npt.NDArray[np.float64]:
    """For each user Σ 1 / log2(1 + rank of a hit) ÷ that of the best list; NaN for users without relevant items.

    Järvelin, Kekäläinen, ACM TOIS 2002, with gains of 0 and 1.

    Args:
        lists: ``[U, K]``, distinct items, best first.
        relevant: Each user's relevant items.
    """
    discounts = 1 / np.log2(np.arange(lists.shape[1]) + 2)
    counts = relevant.counts
    best = np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(counts, lists.shape[1])]
    gain = (_hits(lists, relevant) * discounts).sum(1)
    return np.where(counts > 0, gain / np.where(best > 0, best, 1), np.nan)


def recall_by_popularity(lists: Lists, relevant: ItemSets, accesses: npt.NDArray[np.int64]) -> dict[str, float | None]:
    """Recall of head, torso, tail and new items, each the mean over the users with a relevant item in it.

    Args:
        lists: ``[U, K]``, distinct items, best first.
        relevant: Each user's relevant items.
        accesses: How often the training saw each item, ``[I]``.
    """
    bucket = popularity_buckets(accesses)
    members = {name: bucket == number for number, name in enumerate(BUCKETS)} | {"new": accesses == 0}
    hits, owners, users = _hits(lists, relevant), relevant.owners, len(relevant)
    found: dict[str, float | None] = {}
    for name, belongs in members.items():
        wanted = np.bincount(owners[belongs[relevant.items]], minlength=users)
        hit = (hits & belongs[lists]).sum(1)
        some = wanted > 0
        found[name] = float((hit[some] / wanted[some]).mean()) if some.any() else None
    return found


def coverage(lists: npt.NDArray[np.integer[Any]], num_items: int) -> float:
    """Share of the catalogue's items that are in any list."""
    return np.unique(lists[lists >= 0]).size / num_items


def gini(lists: npt.NDArray[np.integer[Any]], num_items: int) -> float:
    """Gini coefficient of how often each of the catalogue's items is listed: 0 all equally often, near 1 one only.

    Args:
        lists: Items, any shape; -1 counts nowhere.
        num_items: Items in the catalogue; those never listed count as 0.
    """
    _, listed = np.unique(lists[lists >= 0], return_counts=True)
    total = float(listed.sum())
    if not total:
        return 0.0
    # Items never listed stand first and add nothing. Floats: items times listings can be more than int64 holds.
    place = np.arange(num_items - listed.size + 1, num_items + 1, dtype=np.float64)
    return float(((2 * place - num_items - 1) * np.sort(listed)).sum() / (num_items * total))


def score_lists(
    lists: Lists, relevant: ItemSets, num_items: int, *, accesses: npt.NDArray[np.int64] | None = None
) -> RankingScores:
    """All figures.

    Args:
        lists: ``[U, K]``, distinct items, best first.
        relevant: Each user's relevant items.
        num_items: Items in the catalogue.
        accesses: How often the training saw each item, ``[I]``; None leaves ``recall_by_popularity`` empty.

    Raises:
        ConfigError: No user has a relevant item.
    """
    counts = relevant.counts
    if not counts.any():
        raise ConfigError("no user has a relevant item")
    return RankingScores(
        k=lists.shape[1],
        users=int((counts > 0).sum()),
        recall=float(np.nanmean(recall_at_k(lists, relevant))),
        ndcg=float(np.nanmean(ndcg_at_k(lists, relevant))),
        coverage=coverage(lists, num_items),
        gini=gini(lists, num_items),
        recall_by_popularity={} if accesses is None else recall_by_popularity(lists, relevant, accesses),
    )
