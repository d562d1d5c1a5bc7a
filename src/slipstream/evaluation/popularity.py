"""Figures apart for popular and rare rows, since a mean over all samples hides what happens to the tail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slipstream.data.store import Store
from slipstream.errors import ConfigError, DataError
from slipstream.evaluation.metrics import Floats, Scores, score

BUCKETS: tuple[str, ...] = ("head", "torso", "tail")
"""From popular to rare."""
SHARES = (0.5, 0.9)
"""Shares of the accesses held by the head, and by head and torso together."""
_PIECE = 1 << 20


def access_counts(store: Store, feature: int, start: int, stop: int) -> npt.NDArray[np.int64]:
    """How often samples ``start`` to ``stop`` look up each row of a one-hot feature.

    Args:
        store: The data.
        feature: Position among the one-hot features.
        start: First sample.
        stop: First sample that no longer counts.

    Returns:
        int64 ``[rows]``.
    """
    rows = store.one_hot[feature].num_rows
    counts = np.zeros(rows, dtype=np.int64)
    for first in range(start, stop, _PIECE):
        piece = store.ids[first : min(first + _PIECE, stop), feature].numpy()
        counts += count_rows(piece, rows, store.one_hot[feature].name, store.path)
    return counts


def count_rows(ids: npt.NDArray[np.integer[Any]], rows: int, feature: str, path: Path) -> npt.NDArray[np.int64]:
    """How often each row of a table is among ``ids``, int64 ``[rows]``.

    Raises:
        DataError: An id is outside the table.
    """
    if ids.size and (ids.min() < 0 or ids.max() >= rows):
        wrong = int(ids.min() if ids.min() < 0 else ids.max())
        what = f"id {wrong} is outside the table of {rows:,} rows"
        raise DataError(what, file=path, column=feature, remedy="prepare the data again")
    return np.bincount(ids, minlength=rows)


def popularity_buckets(counts: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
    """The bucket of each row: 0 head, 1 torso, 2 tail.

    The head are the most popular rows that together hold half of the accesses, the torso the next that hold up to 90
    %, the tail all others, rows never
    accessed among them. The row that crosses a border belongs to the more popular side.

    Args:
        counts: Accesses of each row, ``[rows]``.
    """
    order = np.argsort(-counts, kind="stable")
    held_before = np.cumsum(counts[order]) - counts[order]
    total = counts.sum()
    bucket = np.full(counts.size, 2, dtype=np.uint8)
    if total:
        ranked = np.searchsorted(np.asarray(SHARES) * total, held_before, side="right").astype(np.uint8)
        ranked[counts[order] == 0] = 2
        bucket[order] = ranked
    return bucket


def bucket_feature(store: Store, name: str | None) -> int | None:
    """Position of the one-hot feature that popularity is about.

    The one named, else the data's items, else (where the data does not say what its items are) the one with the most
    rows.

    Raises:
        ConfigError: There is no such feature.
    """
    names = [feature.name for feature in store.one_hot]
    if name is None:
        item = store.manifest.provenance.get("item")
        if isinstance(item, str) and item in names:
            return names.index(item)
        sizes = [feature.num_rows for feature in store.one_hot]
        return int(np.argmax(sizes)) if sizes else None
    if name not in names:
        raise ConfigError(f"no one-hot feature {name!r}", remedy=f"choose of {', '.join(names)}")
    return names.index(name)


def score_by_popularity(
    rows: npt.NDArray[np.integer[Any]], counts: npt.NDArray[np.integer[Any]], labels: Floats, logits: Floats
) -> dict[str, Scores]:
    """Figures of the samples by the popularity of their row.

    Args:
        rows: The row that each sample looks up, ``[N]``.
        counts: Accesses of each row, ``[R]``.
        labels: ``[N]``.
        logits: ``[N]``.
    """
    of_sample = popularity_buckets(counts)[rows]
    members = (of_sample == i for i in range(len(BUCKETS)))
    return {name: score(labels[own], logits[own]) for name, own in zip(BUCKETS, members, strict=True)}
