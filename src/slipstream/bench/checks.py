"""What safety costs: bounds checked in every kernel, numbers checked for being finite, checkpoints.

Kernels without their checks exist nowhere but here: a copy of the package in a temporary folder, with the conditions
taken out of its source, runs in a process of its own, in turn with the package as it is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import slipstream
from slipstream.bench import BenchOptions, workload
from slipstream.bench.rounds import compete, ratio, row
from slipstream.bench.shared import WorkerFailed
from slipstream.errors import ConfigError
from slipstream.report.record import Record

EVERY_SECONDS = 300
"""Time between two checkpoints that their cost is spread over: the default of ``slipstream train``."""
CHECKPOINTS, TOUCHING_STEPS = 3, 8
_CHECK = re.compile(r"\bif row < 0 or row >= (num_)?rows:")
_CHECKED = {"cpu_lookups.py": 2, "cpu_pool.py": 2}
"""Modules of compiled kernels that check ids, and how many conditions each has."""
_LIMIT_SECONDS = 600


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``quick`` takes 400,000 rows and few rounds.

    Returns:
        ``quality``: the cost of each kind of check as a share: of the embedding kernels (bounds), of a DLRM step
        (finite numbers, marking touched rows), of five minutes (a checkpoint in full, and of touched rows only).
    """
    rows = workload.cardinalities(400_000 if options.quick else workload.TOTAL_ROWS)
    record = Record(
        name="checks",
        dataset=f"synthetic stream, {workload.describe(rows)}",
        conditions={
            "quick": options.quick,
            "batch_size": workload.BATCH_SIZE,
            "model": "DLRM, bottom 13-512-256-64-16, top 512-256-1, dim 16, SGD (kernels: row-wise Adagrad)",
            "threads": torch.get_num_threads(),
            "cost of a checkpoint": f"seconds it takes ÷ {EVERY_SECONDS}",
        },
    )
    _bounds(record, sum(rows), rounds=2 if options.quick else 8)
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as folder:
        _training(record, rows, Path(folder), rounds=6 if options.quick else 60)
        _checkpoints(record, rows, Path(folder))
    return record


def _bounds(record: Record, total_rows: int, rounds: int) -> None:
    seconds: dict[str, list[float]] = {"checked": [], "unchecked": []}
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as folder:
        without_checks(Path(folder))
        for _ in range(rounds):
            seconds["checked"].append(_worker(Path(slipstream.__file__).parents[1], total_rows))
            seconds["unchecked"].append(_worker(Path(folder), total_rows))
    record.rows += [row(f"embedding step, {name}", values) for name, values in seconds.items()]
    best = {name: float(np.min(values)) for name, values in seconds.items()}
    record.quality["bounds checks, of an embedding step"] = round(best["checked"] / best["unchecked"] - 1, 4)


def without_checks(folder: Path) -> None:
    """Copies the package to ``folder`` and takes the bounds checks out of the copy.

    Raises:
        ConfigError: The kernels do not look as this benchmark knows them.
    """
    copied = folder / "slipstream"
    shutil.copytree(Path(slipstream.__file__).parent, copied, ignore=shutil.ignore_patterns("__pycache__"))
    for name, count in _CHECKED.items():
        file = copied / "kernels" / name
        text, found = _CHECK.subn("if False:", file.read_text(encoding="utf-8"))
        if found != count:
            raise ConfigError(f"kernels/{name} checks ids in {found} places, not {count}: mend bench/checks.py")
        file.write_text(text, encoding="utf-8")


def _worker(package: Path, total_rows: int) -> float:
    """Seconds of an embedding step in a process that imports ``slipstream`` from ``package``."""
    command = [sys.executable, "-m", "slipstream.bench.checks", str(total_rows), str(torch.get_num_threads())]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(package)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise WorkerFailed(f"the process {' '.join(command[1:])} failed; its error is printed above")
    figures = json.loads(done.stdout)
    if Path(figures["package"]) != package / "slipstream":
        raise WorkerFailed(f"the process measured {figures['package']}, not {package}")
    return figures["seconds"]


def _measure_kernels(total_rows: int, threads: int) -> None:
    """Prints the median seconds of forward, backward and update of all tables."""
    from slipstream import optim
    from slipstream.bench.systems import Slipstream, fill

    torch.set_num_threads(threads)
    rows = workload.cardinalities(total_rows)
    batches = workload.zipf_batches(rows, batches=16)
    grads = [torch.randn(workload.BATCH_SIZE, len(rows) * 16) / workload.BATCH_SIZE for _ in range(4)]
    ours = Slipstream(rows, 16, batches, grads, optimizer=lambda tables: optim.RowwiseAdagrad(tables, lr=0.01))
    fill(ours)
    for number in range(32):
        ours.step(number)
    seconds: list[float] = []
    for number in range(200):
        began = time.perf_counter()
        ours.step(number)
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"package": str(Path(slipstream.__file__).parent), "seconds": float(np.median(seconds))}))


def _training(record: Record, rows: tuple[int, ...], folder: Path, rounds: int) -> None:
    """Steps of a training with and without each check."""
    from slipstream.data.synthetic import SyntheticConfig, generate
    from slipstream.embedding import tables
    from slipstream.training import TrainConfig, Trainer
    from slipstream.training.checkpoint.touched import Touched
    from slipstream.training.nonfinite import gradients_are_finite

    samples = workload.BATCH_SIZE * 40
    store = generate(folder / "data", SyntheticConfig(num_samples=samples, cardinalities=rows))
    settings: dict[str, Any] = {
        "data": store.path,
        "model": {"name": "dlrm", "embedding_dim": 16, "bottom": [512, 256, 64], "top": [512, 256]},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "batch_size": workload.BATCH_SIZE,
    }
    trainer = Trainer(TrainConfig.model_validate(settings).resolved(), store)
    batches = list(store.batches(workload.BATCH_SIZE, start=0, stop=samples))
    model, own = trainer.model, tables(trainer.model)
    (optimizer,) = trainer.optimizers
    touched = Touched(own)
    touched.detach()

    def step(number: int, check: Callable[[], object] = lambda: None) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(batches[number % len(batches)])
        loss.backward()
        check()
        optimizer.step()

    def marking(number: int) -> None:
        touched.attach()
        step(number)
        touched.detach()

    contestants: dict[str, Callable[[int], object]] = {
        "plain": step,
        "finite": lambda number: step(number, lambda: gradients_are_finite(model)),
        "marking": marking,
    }
    seconds = compete(contestants, rounds=rounds, steps_per_round=4, warm_up=2)
    record.rows += [row(f"DLRM step, {name}", values) for name, values in seconds.items()]
    record.quality["finite gradients, of a step"] = round(ratio(seconds["plain"], seconds["finite"]) - 1, 4)
    record.quality["marking touched rows, of a step"] = round(ratio(seconds["plain"], seconds["marking"]) - 1, 4)


def _checkpoints(record: Record, rows: tuple[int, ...], folder: Path) -> None:
    """Checkpoints of the tables with row-wise Adagrad's state: in full, and of the rows that some steps touched."""
    from slipstream import optim
    from slipstream.bench.systems import Slipstream
    from slipstream.embedding import tables
    from slipstream.training.checkpoint.folder import CheckpointFolder, Info
    from slipstream.training.checkpoint.touched import Touched

    batches = workload.zipf_batches(rows, batches=TOUCHING_STEPS)
    grads = [torch.randn(workload.BATCH_SIZE, len(rows) * 16) / workload.BATCH_SIZE]
    ours = Slipstream(rows, 16, batches, grads, optimizer=lambda own: optim.RowwiseAdagrad(own, lr=0.01))
    own = tables(ours.collection)
    ours.step(0)
    touched = Touched(own)
    state = {"tables": ours.collection.state_dict(), "optimizer": ours.optimizer.state_dict()}
    moving = {
        name: [table.weight.data, *(v for v in ours.optimizer.state[table.weight].values() if _per_row(v))]
        for name, table in own.items()
    }
    touched.follow(moving)
    seconds: dict[str, list[float]] = {"in full": [], "of touched rows": []}
    sizes: dict[str, int] = {}
    for number in range(CHECKPOINTS):
        checkpoints = CheckpointFolder(folder / f"run{number}")
        for kind, values in seconds.items():
            info = Info(position={"steps": len(values)}, config={}, data={})
            began = time.perf_counter()
            path = checkpoints.save(state, info, touched=touched)
            values.append(time.perf_counter() - began)
            sizes[kind] = sum(file.stat().st_size for file in path.iterdir())
            for step in range(TOUCHING_STEPS):
                ours.step(step)
    record.rows += [row(f"checkpoint {kind}", values, bytes=sizes[kind]) for kind, values in seconds.items()]
    whole, part = (float(np.median(values)) for values in seconds.values())
    record.quality["checkpoint in full, of five minutes"] = round(whole / EVERY_SECONDS, 5)
    record.quality["checkpoint of touched rows, of five minutes"] = round(part / EVERY_SECONDS, 5)
    record.quality["rows touched, of all"] = round(
        sum(int(marks.sum()) for marks in touched.marks.values()) / sum(rows), 5
    )
    record.ratios["checkpoint of touched rows against in full"] = round(whole / part, 2)


def _per_row(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


if __name__ == "__main__":
    _measure_kernels(int(sys.argv[1]), int(sys.argv[2]))
