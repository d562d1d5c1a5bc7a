"""What loader and policies add to a step of the Kaggle DLRM on a shuffled store, as a share of a full step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slipstream.bench import BenchOptions, dlrm_step, workload
from slipstream.bench.loader import random_store
from slipstream.bench.rounds import row
from slipstream.bench.scale_options import ScaleOptions
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
    found: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    full = update = 0.0
    for name, settings in POLICIES.items():
        watch = _trained(store, name, settings, pushes, before, options.seed)
        if name == "none":
            full, update = watch.median("step"), watch.median("update")
        spent = {kind: sum(watch.seconds[kind]) / pushes for kind in ("wait", "decide", "listen")}
        gates = max(watch.median("update") - update, 0.0) if name in ("psse", "saturation") else 0.0
        policy = spent["decide"] + spent["listen"] + gates
        figures[f"overhead: loader's share of a step, {name}"] = round(spent["wait"] / full, 5)
        figures[f"overhead: policy's share of a step, {name}"] = round(policy / full, 5)
        shown = {"wait": spent["wait"], "decide": spent["decide"], "listen": spent["listen"], "slower update": gates}
        found.append({**row(name, watch.seconds["step"]), "series": f"step, {name}", **shown})
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


def _trained(store: Store, name: str, settings: dict[str, Any], pushes: int, before: int, seed: int) -> _Watch:
    torch.manual_seed(seed)
    model = DLRM(store.features, store.num_dense, DLRMConfig())
    optimizer = dlrm_step.rowwise_adagrad(model)
    if name in ("psse", "saturation"):
        settings = settings | {"every": EVERY, "warmup_steps": before + 1}
    policy = build_policy({"name": name, **settings} if settings else name)
    policy.warm_up()
    watch = _Watch()
    skipper = Skipper(model, policy, batch_size=workload.BATCH_SIZE, total_samples=len(store))
    for table in skipper.tables.values():
        table.listeners[:] = [watch.around("listen", listener) for listener in table.listeners]
    batches = iter(store.batches(workload.BATCH_SIZE, shuffle_seed=seed))
    for number in range(pushes + before):
        watch.on = number >= before
        begin = perf_counter()
        batch = next(batches)
        watch.add("wait", perf_counter() - begin)
        kept = skipper.push(batch)
        while (some := watch.around("decide", next)(kept, None)) is not None:
            begin = perf_counter()
            _step(model, optimizer, some, watch)
            watch.add("step", perf_counter() - begin)
    return watch


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any, watch: _Watch) -> None:
    logits: Tensor = model(batch.inputs)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, batch.weights)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    watch.around("update", optimizer.step)()
