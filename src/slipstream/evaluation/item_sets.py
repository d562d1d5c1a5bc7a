"""The items of each user, in two flat arrays: those trained on, or those held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class ItemSets:
    """A set of items for each of ``U`` users, laid out as in a compressed sparse row matrix.

    User ``u`` has ``items[offsets[u]:offsets[u + 1]]``, rising and distinct; a set may be empty::

        offsets = [0, 2, 2, 3]     user 0: 3, 7
        items   = [3, 7, 5]        user 1: nothing, user 2: 5
    """

    offsets: npt.NDArray[np.int64]
    """int64 ``[U + 1]``."""
    items: npt.NDArray[np.int64]
    """int64 ``[pairs]``."""

    @classmethod
    def of_pairs(
        cls, users: npt.NDArray[np.integer[Any]], items: npt.NDArray[np.integer[Any]], num_users: int
    ) -> ItemSets:
        """Of pairs in any order; a pair that occurs twice counts once.

        Args:
            users: ``[P]``, each below ``num_users``.
            items: ``[P]``, not negative.
            num_users: U.
        """
        if not len(users):
            return cls(np.zeros(num_users + 1, dtype=np.int64), np.empty(0, dtype=np.int64))
        width = int(items.max()) + 1
        keys = np.unique(users.astype(np.int64) * width + items)
        owners, distinct = np.divmod(keys, width)
        return cls(np.searchsorted(owners, np.arange(num_users + 1)).astype(np.int64), distinct)

    @classmethod
    def of_lists(cls, lists: Sequence[npt.NDArray[np.integer[Any]]]) -> ItemSets:
        """Of one array for each user."""
        owners = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
        items = np.concatenate([np.empty(0, dtype=np.int64), *lists]).astype(np.int64)
        return cls.of_pairs(owners, items, len(lists))

    def __len__(self) -> int:
        """U."""
        return self.offsets.size - 1

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Items of each user, int64 ``[U]``."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> npt.NDArray[np.int64]:
        """The user of each of ``items``, int64 ``[pairs]``."""
        return np.repeat(np.arange(len(self)), self.counts)

    def select(self, users: npt.NDArray[np.int64]) -> ItemSets:
        """The sets of ``users``, in that order."""
        counts = self.counts[users]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        source = np.repeat(self.offsets[:-1][users] - offsets[:-1], counts) + np.arange(offsets[-1])
        return ItemSets(offsets, self.items[source])

    def without(self, other: ItemSets) -> ItemSets:
        """Each user's items that are not in its set of ``other``, which is of the same users."""
        width = int(max(self.items.max(initial=0), other.items.max(initial=0))) + 1
        left = ~np.isin(self.owners * width + self.items, other.owners * width + other.items)
        return ItemSets.of_pairs(self.owners[left], self.items[left], len(self))
