"""Learning rates: the same small grid for every system, on a part of the data that no score is taken from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from benchmarks.peers.catalogue import FACTORS, System, with_rate
from benchmarks.peers.common import Options, train
from benchmarks.peers.datasets import Dataset

from slipstream.data.atomic import write_text

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


def _tuned(name: str, system: System, data: Dataset, options: Options) -> dict[str, Any]:
    settings = system.settings(data)
    if options.quick:
        return {"factor": 1.0, "trials": {}}
    key = json.dumps(
        [name, settings, data.title, list(data.tuning().train), list(FACTORS), EPOCHS, system.epochs], sort_keys=True
    )
    file = options.cache / "tuned" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    trials: dict[str, float | None] = {}
    part = data.tuning()
    epochs = max(EPOCHS, (system.epochs or 0) // 5) if data.mode == "ranking" else 1
    for factor in FACTORS:
        done = train(name, system, with_rate(system, settings, factor), part, options, epochs=epochs, marks=1)
        if name in options.left_out and done is None and options.python(name, system) is None:
            return {"factor": 1.0, "trials": {}}
        trials[f"{factor:.3g}"] = None if done is None else round(done.quality, 5)
    options.left_out.pop(name, None)  # a rate that diverged does not leave the system out
    best = max(FACTORS, key=lambda factor: trials[f"{factor:.3g}"] or 0.0)
    outcome = {"factor": best, "trials": trials}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(outcome))
    return outcome
