"""AUC, log-loss and calibration of logits.

All functions take logits rather than probabilities: near 0 and 1 probabilities in float32 are equal long before the
logits are, which would cost both AUC
and log-loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from slipstream.errors import DataError

Floats = npt.NDArray[np.floating[Any]]

_LARGEST = float(np.finfo(np.float32).max)
_PIECE = 1 << 16
"""Samples of which float64 copies are held at a time: of all they would take many times what the logits do."""


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


def checked(labels: Floats, logits: Floats) -> tuple[Floats, Floats]:
    """Both as arrays of float32 or float64, not copied where they are that already.

    Raises:
        DataError: The lengths differ, or a logit is NaN.
    """
    labels, logits = _floats(labels), _floats(logits)
    if labels.shape != logits.shape or labels.ndim != 1:
        raise DataError(f"labels {labels.shape} and logits {logits.shape} must be vectors of one length")
    _refuse_nan(logits)
    return labels, logits


def _floats(values: Floats) -> Floats:
    array = np.asarray(values)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def _refuse_nan(logits: Floats) -> None:
    if np.isnan(logits).any():
        raise DataError("a logit is NaN", remedy="lower the learning rate")


def _mean(of: Callable[..., npt.NDArray[np.float64]], *vectors: Floats) -> float:
    """Mean of what ``of`` makes of vectors ``[N]``, handed to it in float64, a piece at a time; N is at least 1."""
    size, total = vectors[0].size, 0.0
    for first in range(0, size, _PIECE):
        pieces = (vector[first : first + _PIECE].astype(np.float64) for vector in vectors)
        total += float(of(*pieces).sum())
    return total / size


def auc(labels: Floats, logits: Floats) -> float | None:
    """Area under the ROC curve (Mann-Whitney U). Memory: 6 bytes a sample where the logits are float32.

    Args:
        labels: ``[N]``; above 0.5 is a positive.
        logits: ``[N]``, any increasing function of the probability.

    Returns:
        The area, None unless both classes occur.
    """
    labels, logits = checked(labels, logits)
    positive = labels > 0.5
    positives, negatives = logits[positive], logits[~positive]
    if not positives.size or not negatives.size:
        return None
    positives.sort()
    negatives.sort()
    twice = 0  # of U, a whole number: for each positive the negatives below it, and again with those of equal logit
    for first in range(0, positives.size, _PIECE):
        piece = positives[first : first + _PIECE]
        twice += sum(int(np.searchsorted(negatives, piece, side).sum()) for side in ("left", "right"))
    return twice / (2 * positives.size * negatives.size)


def log_loss(labels: Floats, logits: Floats) -> float | None:
    """Mean binary cross-entropy in nats; None without samples.

    Args:
        labels: ``[N]`` in [0, 1].
        logits: ``[N]``; infinite ones count as the largest of float32.
    """
    labels, logits = checked(labels, logits)

    def losses(labels: npt.NDArray[np.float64], logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        logits = np.clip(logits, -_LARGEST, _LARGEST)
        return np.logaddexp(0.0, logits) - labels * logits

    return _mean(losses, labels, logits) if labels.size else None


def calibration(labels: Floats, logits: Floats) -> float | None:
    """Mean predicted probability ÷ mean label; None when no label is above 0.

    Args:
        labels: ``[N]`` in [0, 1].
        logits: ``[N]``.
    """
    labels, logits = checked(labels, logits)
    base = _mean(np.positive, labels) if labels.size else 0.0
    return _mean(probabilities, logits) / base if base > 0 else None


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
