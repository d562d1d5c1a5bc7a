"""The reliability diagram: predicted probabilities against how often the positive label came."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from slipstream.evaluation.metrics import Floats, checked, probabilities

Places = npt.NDArray[np.intp]


class ReliabilityBin(BaseModel):
    """Samples of like predicted probability."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int
    """How many."""
    predicted: float
    """Mean of their predicted probabilities."""
    observed: float
    """Mean of their labels."""


def reliability(labels: Floats, logits: Floats, *, bins: int = 10) -> list[ReliabilityBin]:
    """Means of samples in order of their prediction, in bins of equal size (the first ones larger by one).

    Bins of equal size, not of equal width: where positives are rare, most predictions lie in one tenth of [0, 1].
    Samples of one prediction that fall into several bins count in each with the mean of all their labels: which of them
    came first says nothing about the model.

    Args:
        labels: ``[N]`` in [0, 1].
        logits: ``[N]``.
        bins: Bins; fewer when there are fewer samples.

    Raises:
        DataError: The lengths differ, or a logit is NaN.
    """
    labels, logits = checked(labels, logits)
    order = np.argsort(logits, kind="stable")
    edges = np.cumsum([0, *(len(own) for own in np.array_split(order, bins))])
    ties = _ties(labels, logits, order, edges)
    found: list[ReliabilityBin] = []
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        own = order[first:last]  # the samples of a bin at a time: copies of all would take more than the order does
        if len(own):
            observed = labels[own].astype(np.float64)
            for start, stop, mean in ties:
                observed[max(0, start - first) : max(0, stop - first)] = mean
            predicted = float(probabilities(logits[own]).mean())
            found.append(ReliabilityBin(samples=len(own), predicted=predicted, observed=float(observed.mean())))
    return found


def _ties(labels: Floats, logits: Floats, order: Places, edges: Places) -> list[tuple[int, int, float]]:
    """Runs of equal predictions that an edge cuts: where each starts and stops in the order, and its mean label."""
    cut = [edge for edge in edges[1:-1].tolist() if edge < len(order)]
    values = np.unique(logits[order[cut]])
    starts, stops = (np.searchsorted(logits, values, side, sorter=order).tolist() for side in ("left", "right"))
    return [
        (start, stop, float(labels[order[start:stop]].mean(dtype=np.float64)))
        for start, stop in zip(starts, stops, strict=True)
        if any(start < edge < stop for edge in cut)
    ]
