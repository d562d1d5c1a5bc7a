"""Prequential evaluation: each sample is predicted before it is trained on, so that every one of them tests the model.

Gama, Sebastião, Rodrigues: On evaluating stream learning algorithms, Machine Learning 90, 2013.
"""

from __future__ import annotations

from itertools import pairwise

from pydantic import BaseModel, ConfigDict

from slipstream.evaluation.metrics import Floats, auc, log_loss


class CurvePoint(BaseModel):
    """A point of a learning curve."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int
    """Samples of the data that had passed when the point's last sample was predicted."""
    auc: float | None
    """Area under the ROC curve of the point's samples."""
    log_loss: float | None
    """Their mean cross-entropy, nats."""
    seconds: float | None = None
    """Training time until then."""
    ndcg: float | None = None
    """NDCG@k of the ranked lists, where there were any."""


def learning_curve(labels: Floats, logits: Floats, *, start: int = 0, points: int = 40) -> list[CurvePoint]:
    """Figures of consecutive windows of equal size.

    Args:
        labels: ``[N]`` in the order of the data.
        logits: ``[N]``, predicted before training on them.
        start: Samples that passed before the first of them.
        points: Windows; fewer when there are fewer samples.
    """
    total = len(labels)
    cuts = [total * i // points for i in range(points + 1)]
    return [
        CurvePoint(
            samples=start + last,
            auc=auc(labels[first:last], logits[first:last]),
            log_loss=log_loss(labels[first:last], logits[first:last]),
        )
        for first, last in pairwise(cuts)
        if last > first
    ]
