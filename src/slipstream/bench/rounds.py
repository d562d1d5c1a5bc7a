"""Contestants take turns, and are compared within each turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from slipstream.report.timing import alternate, summarise


def compete(
    steps: Mapping[str, Callable[[int], object]],
    *,
    rounds: int,
    steps_per_round: int,
    warm_up: int,
    threads: Mapping[str, int] | None = None,
) -> dict[str, list[float]]:
    """Time step functions in turn.

    Args:
        steps: What to time, by name; each is called with the number of the step, counted up.
        rounds: Turns of each.
        steps_per_round: Consecutive steps that make one turn.
        warm_up: Untimed turns of each beforehand.
        threads: Threads that a contestant computes with, where they are not torch's current number.

    Returns:
        Seconds per step, one figure a turn, by name.
    """
    normal = torch.get_num_threads()

    def turn(name: str, step: Callable[[int], object]) -> Callable[[], None]:
        number = 0
        wanted = (threads or {}).get(name, normal)

        def run() -> None:
            nonlocal number
            torch.set_num_threads(wanted)
            for _ in range(steps_per_round):
                step(number)
                number += 1

        return run

    try:
        seconds = alternate({name: turn(name, step) for name, step in steps.items()}, rounds=rounds, warm_up=warm_up)
    finally:
        torch.set_num_threads(normal)
    return {name: [value / steps_per_round for value in values] for name, values in seconds.items()}


def ratio(ours: Sequence[float], peer: Sequence[float]) -> float:
    """How many times faster ours is: the median over the rounds of the peer's time over ours."""
    return round(float(np.median(np.asarray(peer) / np.asarray(ours))), 3)


def best(seconds: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """The contestant of ``names`` with the lowest median: a peer is compared in the setting that suits it best."""
    return min(names, key=lambda name: float(np.median(seconds[name])))


def row(system: str, seconds: Sequence[float], **conditions: Any) -> dict[str, Any]:
    """A record's row: conditions, then p20, p50 and p80 in seconds a step, and the number of rounds."""
    return {"system": system, **conditions, **summarise(seconds), "rounds": len(seconds)}
