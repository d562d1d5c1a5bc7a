"""Ranked lists of a trained model over the full catalogue, for data of pairs."""

from __future__ import annotations

import numpy as np
import torch

from slipstream.data.store import Store
from slipstream.errors import ConfigError, DataError
from slipstream.evaluation import ItemSets, RankingScores, rank_items, score_lists
from slipstream.models import Recommender


class Ranker:
    """Ranks the full catalogue, less what the user has in training, for every user with a held-out item.

    Row 0 of users and items, which stands for all unknown ones, has no list and is in none.

    Args:
        store: Data of pairs.
        user: The feature that names the user.
        item: The feature that names the item.
        trained: Start and stop of the samples whose pairs are not listed: those trained on.
        scored: Start and stop of the samples whose positives are the relevant items.
        k: Length of the lists; fewer if there are fewer items.

    Raises:
        DataError: No scored sample is a new pair of a known user and a known item.
    """

    def __init__(
        self, store: Store, user: str, item: str, trained: tuple[int, int], scored: tuple[int, int], k: int
    ) -> None:
        names = [feature.name for feature in store.one_hot]
        columns = names.index(user), names.index(item)
        known = _positives(store, columns, *trained)
        relevant = _positives(store, columns, *scored).without(known)
        users = np.flatnonzero(relevant.counts)
        if not users.size:
            raise DataError(
                f"samples {scored[0]} to {scored[1]}, which are scored, hold no pair to rank",
                file=store.path,
                remedy="score more samples",
            )
        num_items = store.one_hot[columns[1]].num_rows
        self._users, self._known, self._relevant = torch.from_numpy(users), known.select(users), relevant.select(users)
        self._accesses = np.bincount(known.items, minlength=num_items)
        self._catalogue = num_items - 1
        self._k = min(k, self._catalogue)

    @classmethod
    def of(
        cls, model: Recommender, store: Store, trained: tuple[int, int], scored: tuple[int, int], k: int
    ) -> Ranker | None:
        """One for the model's user and item, or None where the data is not of pairs or the model has no vectors."""
        provenance = store.manifest.provenance
        if provenance.get("format") != "pairs":
            return None
        with torch.no_grad():
            vectors = model.vectors()
        if vectors is None or (vectors.user, vectors.item) != (provenance.get("user"), provenance.get("item")):
            return None
        return cls(store, vectors.user, vectors.item, trained, scored, k)

    def __call__(self, model: Recommender) -> RankingScores:
        """Figures of the model's lists.

        Raises:
            ConfigError: The model has no vectors, or one of them is not a number.
        """
        was_training = model.training
        model.eval()
        with torch.no_grad():
            vectors = model.vectors()
        model.train(was_training)
        if vectors is None:
            raise ConfigError("the model has no vectors of users and items")
        if not (vectors.users.isfinite().all() and vectors.items.isfinite().all()):
            raise ConfigError("a vector is not finite", remedy="lower the learning rates")
        bias = vectors.item_bias.clone()
        bias[0] = -torch.inf
        lists = rank_items(vectors.users[self._users], vectors.items, self._k, item_bias=bias, exclude=self._known)
        return score_lists(lists, self._relevant, self._catalogue, accesses=self._accesses)


def _positives(store: Store, columns: tuple[int, int], start: int, stop: int) -> ItemSets:
    """Items of each user among the positives of a range, without row 0 of either."""
    ids = store.ids[start:stop].numpy()
    users, items = ids[:, columns[0]], ids[:, columns[1]]
    chosen = (store.labels[start:stop].numpy() > 0.5) & (users > 0) & (items > 0)
    return ItemSets.of_pairs(users[chosen], items[chosen], store.one_hot[columns[0]].num_rows)
