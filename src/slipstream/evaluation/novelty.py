"""Figures of what is new: samples whose item no earlier sample held."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slipstream.data.store import Store
from slipstream.evaluation.metrics import Floats, Scores, score

_PIECE = 1 << 20


def first_seen(store: Store, feature: int, stop: int) -> npt.NDArray[np.int64]:
    """The first of the samples 0 to ``stop`` that looks up each row of a one-hot feature.

    Args:
        store: The data.
        feature: Position among the one-hot features.
        stop: First sample that no longer counts.

    Returns:
        int64 ``[rows]``; ``stop`` for rows that none of them looks up.
    """
    first = np.full(store.one_hot[feature].num_rows, stop, dtype=np.int64)
    for start in range(0, stop, _PIECE):
        rows, place = np.unique(store.ids[start : min(start + _PIECE, stop), feature].numpy(), return_index=True)
        first[rows] = np.minimum(first[rows], start + place)
    return first


def score_new_items(
    first: npt.NDArray[np.int64], start: int, chunk: int | None, labels: Floats, logits: Floats
) -> dict[str, Scores]:
    """Figures of new items, the same samples whatever a policy skipped.

    ``new`` are samples whose item occurs in no sample before ``start``; ``untrained`` those whose item had occurred in
    no sample that could be trained on when it was predicted. Without chunks both are the same.

    Args:
        first: For each of the N scored samples the first sample with its item, int64 ``[N]``.
        start: First sample that is scored; the others follow it one by one.
        chunk: Samples predicted at a time and then trained on, counted from sample 0; None: none of those scored is
            trained on.
        labels: ``[N]``.
        logits: ``[N]``.
    """
    new = first >= start
    untrained = new.copy()
    if chunk is not None:
        for begin in range(0, first.size, _PIECE):  # numbers of all samples would take 8 bytes each, and as much again
            end = min(begin + _PIECE, first.size)
            trained = np.arange(start + begin, start + end) // chunk * chunk
            untrained[begin:end] = first[begin:end] >= trained
    return {name: score(labels[own], logits[own]) for name, own in (("new", new), ("untrained", untrained))}
