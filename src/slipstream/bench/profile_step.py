"""Where the time of a whole training step goes: torch's profiler for operators, cProfile for Python.

The step is that of :class:`slipstream.training.loop.Trainer` (reading, policy, forward, backward, checks, update) on
random samples with the Kaggle DLRM, in float32 and in bf16. torch's profiler gives each operator's own time on any
thread; cProfile that of Python functions on the training thread, where what is not Python stands under the function
that called it. Both slow the step down, so shares are of their own totals; the step's time is measured without them.
"""

from __future__ import annotations

import cProfile
import pstats
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

import slipstream
from slipstream.bench import BenchOptions, workload
from slipstream.bench.loader import random_store
from slipstream.bench.rounds import row
from slipstream.data.batch import Batch
from slipstream.data.store import Store
from slipstream.report.record import Record
from slipstream.training import TrainConfig
from slipstream.training.loop import Trainer

SHOWN = 0.004
"""Share of the total from which an operator or a function is listed."""
WARM_UP = 12
_PACKAGE = Path(slipstream.__file__).parent


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``quick`` shrinks the tables to 400,000 rows and takes a few steps.

    Returns:
        ``rows``: the step, then ``where`` (an operator or function), ``kind`` (torch or Python), ``share`` of that
        profiler's total, microseconds and calls a step.
    """
    steps = 8 if options.quick else 60
    counts = workload.cardinalities(400_000 if options.quick else workload.TOTAL_ROWS)
    record = Record(
        name="profile_step",
        dataset=f"random samples, {workload.describe(counts)}, seed {options.seed}",
        conditions={
            "quick": options.quick,
            "batch_size": workload.BATCH_SIZE,
            "steps": steps,
            "model": "DLRM, bottom 13-512-256-64-16, top 512-256-1, row-wise Adagrad",
            "threads": torch.get_num_threads(),
            "listed": f"what takes {SHOWN:.1%} or more of a profiler's total",
        },
    )
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-", dir=options.cache) as temporary:
        samples = (3 * steps + WARM_UP + 3) * workload.BATCH_SIZE
        store = random_store(Path(temporary) / "store", counts, samples, options.seed)
        for name, settings in (("float32", {}), ("bf16", {"bf16": True})):
            _profile(record, name, _steps(store, settings, options), steps)
    return record


def _steps(store: Store, settings: dict[str, Any], options: BenchOptions) -> Callable[[], None]:
    """A function that does the next step of a training."""
    config = TrainConfig.model_validate(
        {
            "data": str(store.path),
            "model": {"name": "dlrm"},
            "optimizer": {"name": "rowwise_adagrad", "lr": 0.01},
            "batch_size": workload.BATCH_SIZE,
            "holdout": 1 / 3 / 32,
            "seed": options.seed,
            **settings,
        }
    )
    trainer = Trainer(config.resolved(), store)
    batches: Iterator[Batch] = iter(store.batches(workload.BATCH_SIZE, shuffle_seed=options.seed))

    def step() -> None:
        trainer._train([next(batches)], end=0)

    for _ in range(WARM_UP):
        step()
    return step


def _profile(record: Record, name: str, step: Callable[[], None], steps: int) -> None:
    seconds: list[float] = []
    for _ in range(steps):
        begin = perf_counter()
        step()
        seconds.append(perf_counter() - begin)
    record.rows.append({**row(f"step {name}", seconds), "kind": "alone"})
    record.rows += _of_torch(name, step, steps)
    record.rows += _of_python(name, step, steps)


def _of_torch(name: str, step: Callable[[], None], steps: int) -> list[dict[str, Any]]:
    with torch_profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        for _ in range(steps):
            step()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    return [
        {
            "system": f"step {name}",
            "kind": "torch",
            "where": event.key,
            "share": round(event.self_cpu_time_total / total, 4),
            "us a step": round(event.self_cpu_time_total / steps, 1),
            "calls a step": round(event.count / steps, 1),
        }
        for event in sorted(events, key=lambda event: -event.self_cpu_time_total)
        if event.self_cpu_time_total >= SHOWN * total
    ]


def _of_python(name: str, step: Callable[[], None], steps: int) -> list[dict[str, Any]]:
    """Functions by their own time; that of operators written as such (``x @ y``) is their caller's."""
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(steps):
        step()
    profiler.disable()
    stats: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    total = sum(own for _, _, own, _, _ in stats.values())
    return [
        {
            "system": f"step {name}",
            "kind": "Python",
            "where": _place(file, function),
            "share": round(own / total, 4),
            "us a step": round(own / steps * 1e6, 1),
            "calls a step": round(calls / steps, 1),
        }
        for (file, _, function), (_, calls, own, _, _) in sorted(stats.items(), key=lambda entry: -entry[1][2])
        if own >= SHOWN * total
    ]


def _place(file: str, function: str) -> str:
    """A function without the folders of this machine."""
    if file == "~":
        return function
    path = Path(file)
    if path.is_relative_to(_PACKAGE):
        return f"slipstream/{path.relative_to(_PACKAGE)}: {function}"
    parts = path.parts
    inside = parts[parts.index("site-packages") + 1 :] if "site-packages" in parts else parts[-1:]
    return f"{'/'.join(inside)}: {function}"
