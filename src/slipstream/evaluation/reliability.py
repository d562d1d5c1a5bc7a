"""The reliability diagram: predicted probabilities against how often the positive label came."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from slipstream.evaluation.metrics import Floats, checked, probabilities


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

    Args:
        labels: ``[N]`` in [0, 1].
        logits: ``[N]``.
        bins: Bins; fewer when there are fewer samples.

    Raises:
        DataError: The lengths differ, or a logit is NaN.
    """
    labels, logits = checked(labels, logits)
    order = np.argsort(logits, kind="stable")
    return [  # the samples of a bin at a time: float64 copies of all would take more than the order does
        ReliabilityBin(
            samples=len(own),
            predicted=float(probabilities(logits[own]).mean()),
            observed=float(labels[own].astype(np.float64).mean()),
        )
        for own in np.array_split(order, bins)
        if len(own)
    ]
