"""AUC, log-loss and calibration of logits.

All functions take logits rather than probabilities: near 0 and 1 probabilities in float32 are equal long before the
logits are, which would cost both AUC
and log-loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from slipstream.errors import DataError

Floats = npt.NDArray[np.floating[Any]]

_LARGEST = float(np.finfo(np.float32).max)


class Scores(BaseModel):
    """Figures of some scored samples; None where they are not defined (labels of one class only, or no sample)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int
    """Samples scored."""
    auc: float | None
    """Chance that a positive is scored above a negative, ties counting half."""
    log_loss: float | None
    """Mean of −ln of the probability given to the label, in nats."""
    calibration: float | None
    """Mean of the predicted probabilities ÷ mean of the labels."""


def checked(labels: Floats, logits: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Both in float64.

    Raises:
        DataError: The lengths differ, or a logit is NaN.
    """
    labels, logits = np.asarray(labels, dtype=np.float64), np.asarray(logits, dtype=np.float64)
    if labels.shape != logits.shape or labels.ndim != 1:
        raise DataError(f"labels {labels.shape} and logits {logits.shape} must be vectors of one length")
    _refuse_nan(logits)
    return labels, logits


def _refuse_nan(logits: npt.NDArray[np.float64]) -> None:
    if np.isnan(logits).any():
        raise DataError("a logit is NaN", remedy="lower the learning rate")


def auc(labels: Floats, logits: Floats) -> float | None:
    """Area under the ROC curve, from ranks (Mann-Whitney U).

    Args:
        labels: ``[N]``; above 0.5 is a positive.
        logits: ``[N]``, any increasing function of the probability.

    Returns:
        The area, None unless both classes occur.
    """
    labels, logits = checked(labels, logits)
    positive = labels > 0.5
    positives = int(positive.sum())
    negatives = positive.size - positives
    if not positives or not negatives:
        return None
    order = np.argsort(logits, kind="stable")
    ordered = logits[order]
    # Ties share the mean of their ranks: a run from first to last (1-based, inclusive) has rank (first + last) / 2.
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, ordered.size])
    ranks = np.repeat(starts + (lengths + 1) / 2, lengths)
    above = ranks[positive[order]].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def log_loss(labels: Floats, logits: Floats) -> float | None:
    """Mean binary cross-entropy in nats; None without samples.

    Args:
        labels: ``[N]`` in [0, 1].
        logits: ``[N]``; infinite ones count as the largest of float32.
    """
    labels, logits = checked(labels, logits)
    logits = np.clip(logits, -_LARGEST, _LARGEST)
    if not labels.size:
        return None
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))


def calibration(labels: Floats, logits: Floats) -> float | None:
    """Mean predicted probability ÷ mean label; None when no label is above 0.

    Args:
        labels: ``[N]`` in [0, 1].
        logits: ``[N]``.
    """
    labels, logits = checked(labels, logits)
    base = labels.mean() if labels.size else 0.0
    return float(probabilities(logits).mean() / base) if base > 0 else None


def probabilities(logits: Floats) -> npt.NDArray[np.float64]:
    """The sigmoid of logits, as exp(−ln(1 + exp(−x))), which overflows nowhere.

    Args:
        logits: Of any shape.

    Raises:
        DataError: A logit is NaN.
    """
    logits = np.asarray(logits, dtype=np.float64)
    _refuse_nan(logits)
    return np.exp(-np.logaddexp(0.0, -logits))


def score(labels: Floats, logits: Floats) -> Scores:
    """All figures.

    Args:
        labels: ``[N]`` in [0, 1].
        logits: ``[N]``.

    Raises:
        DataError: The lengths differ, or a logit is NaN.
    """
    return Scores(
        samples=len(labels),
        auc=auc(labels, logits),
        log_loss=log_loss(labels, logits),
        calibration=calibration(labels, logits),
    )
