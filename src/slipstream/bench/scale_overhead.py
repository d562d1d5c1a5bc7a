"""What loader and policies add to a step of the Kaggle DLRM on a shuffled store, as a share of a full step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from slipstream.bench import BenchOptions, dlrm_step, workload
from slipstream.bench.loader import random_store
from slipstream.bench.rounds import row
from slipstream.bench.scale_options import ScaleOptions
from slipstream.data.batch import Batch
from slipstream.data.store import Store
from slipstream.models import DLRM, DLRMConfig
from slipstream.policies import Skipper, build_policy

POLICIES: dict[str, dict[str, Any]] = {
    "none": {},
    "random": {"budget": 0.5},
    "importance": {"budget": 0.5, "rest_below": 0.0},
    "psse": {"budget": 1.0},
    "saturation": {"budget": 1.0},
}
"""Of the policies that gate rows nothing is skipped, so that what they cost is not hidden by what they save; the scout
of ``importance`` may not rest, as it would on labels that are noise."""
EVERY = 200
"""Steps between decisions of the policies that gate rows (saturation's default); just one lies in the time measured."""
WARM_UP = 20
"""Steps that do not count."""


def overhead(
    options: BenchOptions, wanted: ScaleOptions, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Per full batch of samples: waiting for it, deciding (and packing) it, listening to lookups in backward.

    Row policies also make the update itself slower (gates read, signals measured): its time beyond that without a
    policy is part of theirs.
    """
    total = 400_000 if options.quick else workload.TOTAL_ROWS
    pushes, before = (8, 6) if options.quick else (EVERY, WARM_UP)
    counts = workload.cardinalities(total)
    store = random_store(folder / "overhead", counts, (pushes + before) * workload.BATCH_SIZE, options.seed)
    runs = {name: _Run(store, name, settings, before, options.seed) for name, settings in POLICIES.items()}
    for number in range(pushes + before):  # in turn, so that a slow phase of the machine hits all alike
        for run in runs.values():
            run.push(counts=number >= before)
    found: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    full, update = (runs["none"].watch.median(kind) for kind in ("step", "update"))
    for name, run in runs.items():
        spent = {kind: sum(run.watch.seconds[kind]) / pushes for kind in ("wait", "decide", "listen")}
        gates = max(run.watch.median("update") - update, 0.0) if name in ("psse", "saturation") else 0.0
        policy = spent["decide"] + spent["listen"] + gates
        figures[f"overhead: loader's share of a step, {name}"] = round(spent["wait"] / full, 5)
        figures[f"overhead: policy's share of a step, {name}"] = round(policy / full, 5)
        shown = {"wait": spent["wait"], "decide": spent["decide"], "listen": spent["listen"], "slower update": gates}
        found.append({**row(name, run.watch.seconds["step"]), "series": f"step, {name}", **shown})
    return found, figures


class _Watch:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {kind: [] for kind in ("wait", "decide", "listen", "step", "update")}
        self.on = False

    def add(self, kind: str, seconds: float) -> None:
        if self.on:
            self.seconds[kind].append(seconds)

    def around(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*arguments: Any) -> Any:
            begin = perf_counter()
            result = function(*arguments)
            self.add(kind, perf_counter() - begin)
            return result

        return timed

    def median(self, kind: str) -> float:
        return float(np.median(self.seconds[kind]))


class _Run:
    """A training under a policy."""

    def __init__(self, store: Store, name: str, settings: dict[str, Any], before: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = DLRM(store.features, store.num_dense, DLRMConfig())
        self.optimizer = dlrm_step.rowwise_adagrad(self.model)
        if name in ("psse", "saturation"):
            settings = settings | {"every": EVERY, "warmup_steps": before + 1}
        policy = build_policy({"name": name, **settings} if settings else name)
        policy.warm_up()
        self.watch = _Watch()
        size, samples = workload.BATCH_SIZE, len(store)
        self.skipper = Skipper(self.model, policy, batch_size=size, total_samples=samples, adds_logit_offset=True)
        for table in self.skipper.tables.values():
            table.listeners[:] = [self.watch.around("listen", listener) for listener in table.listeners]
        self.batches = iter(store.batches(workload.BATCH_SIZE, shuffle_seed=seed))

    def push(self, *, counts: bool) -> None:
        """The next batch: read, decided on, and trained on if a full one has come together."""
        self.watch.on = counts
        kept = self.skipper.push(self.watch.around("wait", next)(self.batches))
        decide = self.watch.around("decide", next)
        while (batch := decide(kept, None)) is not None:
            self.watch.around("step", self._step)(batch)

    def _step(self, batch: Batch) -> None:
        loss = self.model.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.watch.around("update", self.optimizer.step)()
