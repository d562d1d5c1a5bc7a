"""Learning rates: the same grid and rule for every system, on a part of the data that no score is taken from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from benchmarks.peers.catalogue import FACTORS, System, with_rate
from benchmarks.peers.common import Options, train
from benchmarks.peers.datasets import Dataset

from slipstream.data.atomic import write_text

STEP, REACH = 3.0, 28.0
"""Factor between two rates, and the largest one from the middle: the grid goes on while its best rate is at an end."""
EPOCHS = 4
"""Of a trial, for data that is ranked."""


def tune(
    systems: Mapping[str, System], data: Dataset, options: Options, known: Mapping[str, System]
) -> dict[str, dict[str, Any]]:
    """Chooses a factor on each system's rates.

    Trials are kept in the cache: a second run on the same data and settings measures at once.

    Args:
        systems: Who takes part.
        data: The data; its :meth:`Dataset.tuning` part is used.
        options: Options.
        known: All systems, for those whose choice another one takes.

    Returns:
        By system: ``factor`` and ``trials``, quality by factor.
    """
    data = data.rates_from or data
    outcome: dict[str, dict[str, Any]] = {}
    needed = dict.fromkeys([known_as(name, systems, known) for name in systems])
    for name in needed:
        outcome[name] = _tuned(name, known[name], data, options)
    for name in systems:
        owner = known_as(name, systems, known)
        if owner != name:
            outcome[name] = {"factor": outcome[owner]["factor"], "as": owner}
    return outcome


def known_as(name: str, systems: Mapping[str, System], known: Mapping[str, System]) -> str:
    """The system whose grid decides on this one's rates."""
    return (systems.get(name) or known[name]).rates_of or name


def _best(tried: Mapping[float, float | None]) -> float:
    return max(tried, key=lambda factor: tried[factor] or 0.0)


def _beyond(tried: Mapping[float, float | None]) -> list[float]:
    """The next factor where the best one is at an end of those that were tried."""
    best = _best(tried)
    if best == max(tried) and best * STEP <= REACH:
        return [best * STEP]
    return [best / STEP] if best == min(tried) and best / STEP >= 1 / REACH else []


def _tuned(name: str, system: System, data: Dataset, options: Options) -> dict[str, Any]:
    settings = system.settings(data)
    if options.quick:
        return {"factor": 1.0, "trials": {}}
    key = json.dumps(
        [name, settings, data.title, list(data.tuning().train), [*FACTORS, REACH], EPOCHS, system.epochs],
        sort_keys=True,
    )
    file = options.cache / "tuned" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    tried: dict[float, float | None] = {}
    part = data.tuning()
    epochs = max(EPOCHS, (system.epochs or 0) // 5) if data.mode == "ranking" else 1
    waiting = list(FACTORS)
    while waiting:
        factor = waiting.pop(0)
        done = train(name, system, with_rate(system, settings, factor), part, options, epochs=epochs, marks=1)
        if done is None and options.python(name, system) is None:
            return {"factor": 1.0, "trials": {}}
        tried[factor] = None if done is None else round(done.quality, 5)
        if not waiting:
            waiting = _beyond(tried)
    options.left_out.pop(name, None)  # a rate that diverged does not leave the system out
    outcome = {"factor": _best(tried), "trials": {f"{factor:.3g}": quality for factor, quality in tried.items()}}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(outcome))
    return outcome
