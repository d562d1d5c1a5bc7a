"""How widely recommendations spread over the catalogue: of ranked lists, or of the highest predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from slipstream.evaluation.metrics import Floats
from slipstream.evaluation.ranking import coverage, gini

TOP = 0.1
"""Share of the samples that counts as recommended where there are no ranked lists."""


class Diversity(BaseModel):
    """How widely recommendations spread."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str
    """What counts as recommended."""
    coverage: float
    """Share of the items that are recommended to anyone."""
    gini: float
    """Inequality of how often items are recommended, 0 equal to 1 one item only."""


def diversity_of_highest(rows: npt.NDArray[np.integer[Any]], logits: Floats, share: float = TOP) -> Diversity:
    """Of the samples with the highest predictions; the catalogue are the items of all samples.

    Args:
        rows: The item of each sample, ``[N]``, 0 or more; at least one.
        logits: ``[N]``.
        share: Share of the samples that count as recommended; of equal predictions the earlier ones do.
    """
    items = np.unique(rows).size
    count = max(1, round(share * logits.size))
    # No order of all samples, which would take 12 bytes each: the least prediction that is in, and what is above it.
    least = np.partition(logits, -count)[-count]
    highest = logits > least
    highest[np.flatnonzero(logits == least)[: count - np.count_nonzero(highest)]] = True
    chosen = rows[highest]
    return Diversity(
        of=f"the {share:.0%} of the scored samples with the highest predictions",
        coverage=coverage(chosen, items),
        gini=gini(chosen, items),
    )
