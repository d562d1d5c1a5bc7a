"""Summaries of repeated timings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import numpy as np


def summarise(seconds: Sequence[float]) -> dict[str, float]:
    """Median and spread of repeated timings.

    Args:
        seconds: One duration per repetition, at least one.

    Returns:
        The 20th, 50th and 80th percentile as ``p20``, ``p50``, ``p80``, in the unit given.
    """
    p20, p50, p80 = np.percentile(np.asarray(seconds, dtype=np.float64), (20, 50, 80))
    return {"p20": float(p20), "p50": float(p50), "p80": float(p80)}


def alternate(
    functions: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Time functions in turn within one process, so that a slow phase of the machine hits all of them alike.

    Args:
        functions: What to time, by name; each call is one sample.
        rounds: Samples per function.
        warm_up: Untimed calls of each function beforehand (compilation, caches).

    Returns:
        ``rounds`` durations in seconds per name.
    """
    for function in functions.values():
        for _ in range(warm_up):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = perf_counter()
            function()
            seconds[name].append(perf_counter() - start)
    return seconds
