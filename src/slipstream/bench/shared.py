"""Sharing cores: two trainings side by side against one, embedding kernels between matrix products against alone.

Each measurement runs in processes of its own, since libgomp reads ``GOMP_SPINCOUNT`` when it is loaded: once with
the bounded spin that the command line sets before torch is imported, once with libgomp's default, and once with
``OMP_WAIT_POLICY=PASSIVE``. That is the evidence for the threading choices.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch

from slipstream.bench import BenchOptions, workload
from slipstream.errors import SlipstreamError
from slipstream.report.record import Record
from slipstream.report.timing import summarise


class WorkerFailed(SlipstreamError, RuntimeError):
    """A process of a benchmark ended without its figures."""


BOUNDED_SPIN = os.environ.get("GOMP_SPINCOUNT") or "1000"
"""What the command line has set for this process, or would set."""

SETTINGS: dict[str, dict[str, str]] = {
    "bounded spin": {"GOMP_SPINCOUNT": BOUNDED_SPIN},
    "default spin": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
"""Environment of each setting; the first is what ``slipstream`` runs with."""

_LIMIT_SECONDS = 600


class _Size(NamedTuple):
    """How much a measurement takes."""

    total_rows: int
    train_steps: int
    kernel_turns: int
    repeats: int


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``quick`` measures the bounded spin alone, on 100,000 rows.

    Returns:
        For each setting in ``ratios``: ``alone_over_each …`` (a training's time alone over its time beside a second
        one; 0.5 is perfect sharing of the cores, 0.4 the least allowed) and ``kernels_alone_over_between_matmuls …``
        (at least 1 / 1.15). ``quality`` holds the same as slow-downs, and for the kernels also that on one thread,
        where only the caches can be the cause.
    """
    size = _Size(100_000, 15, 30, 1) if options.quick else _Size(1_000_000, 60, 200, 3)
    threads = options.threads or torch.get_num_threads()
    record = Record(
        name="shared",
        dataset=f"DLRM as in the step benchmark, Criteo Kaggle's cardinalities scaled to {size.total_rows:,} rows",
        conditions={
            "quick": options.quick,
            "batch_size": workload.BATCH_SIZE,
            "threads of each process": threads,
            "steps of a training": size.train_steps,
            "unit": "seconds a training (set-up and first steps not counted); seconds an embedding step",
            "settings": SETTINGS,
        },
    )
    for name, environment in list(SETTINGS.items())[: 1 if options.quick else None]:
        alone, each = [], []
        for _ in range(size.repeats):  # one alone and two side by side in turn
            alone += _train(environment, threads, size, copies=1)
            each += _train(environment, threads, size, copies=2)
        kernels = _workers(environment, ["kernels", size.total_rows, size.kernel_turns, threads], copies=1)[0]
        # On one thread no pools can compete: what a matmul costs the kernels then, it costs by filling the caches.
        control = _workers(environment, ["kernels", size.total_rows, size.kernel_turns, 1], copies=1)[0]
        record.rows += [
            {"system": "training alone", "setting": name, **summarise(alone), "runs": len(alone)},
            {"system": "training beside another", "setting": name, **summarise(each), "runs": len(each)},
            {"system": "kernels alone", "setting": name, **summarise(kernels["alone"])},
            {"system": "kernels between matmuls", "setting": name, **summarise(kernels["between"])},
        ]
        side = float(np.median(each) / np.median(alone))
        between = float(np.median(np.asarray(kernels["between"]) / np.asarray(kernels["alone"])))
        cache = float(np.median(np.asarray(control["between"]) / np.asarray(control["alone"])))
        record.ratios[f"alone_over_each {name}"] = round(1 / side, 3)
        record.ratios[f"kernels_alone_over_between_matmuls {name}"] = round(1 / between, 3)
        record.quality[f"slowdown of each of two trainings, {name}"] = round(side, 3)
        record.quality[f"slowdown of the kernels between matmuls, {name}"] = round(between, 3)
        record.quality[f"the same on one thread, by the caches alone, {name}"] = round(cache, 3)
        record.quality[f"slowdown of the kernels by sharing threads, {name}"] = round(between / cache, 3)
    return record


def _train(environment: dict[str, str], threads: int, size: _Size, *, copies: int) -> list[float]:
    """Seconds that each of ``copies`` trainings at once takes."""
    arguments = ["train", size.total_rows, size.train_steps, threads]
    return [figures["seconds"] for figures in _workers(environment, arguments, copies=copies)]


def _workers(environment: dict[str, str], arguments: list[Any], *, copies: int) -> list[dict[str, Any]]:
    """Run this module as processes that start measuring at the same time; the figures of each."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-m", "slipstream.bench.shared", *map(str, arguments)]
    workers = [
        subprocess.Popen(command, env=inherited | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(copies)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            if worker.stdout.readline().strip() != "ready":
                raise WorkerFailed(f"the process {' '.join(command[1:])} failed; its error is printed above")
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        figures = []
        for worker in workers:
            out, _ = worker.communicate(timeout=_LIMIT_SECONDS)
            if worker.returncode:
                raise WorkerFailed(f"the process {' '.join(command[1:])} failed; its error is printed above")
            figures.append(json.loads(out))
        return figures
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()


def _wait_for_start() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def _measure_training(total_rows: int, steps: int) -> dict[str, Any]:
    from slipstream import optim
    from slipstream.data.batch import Inputs
    from slipstream.data.schema import FeatureInfo
    from slipstream.models import DLRM, DLRMConfig

    rows = workload.cardinalities(total_rows)
    batches = workload.zipf_batches(rows, batches=8)
    model = DLRM([FeatureInfo(name=f"c{i}", num_rows=count) for i, count in enumerate(rows)], 13, DLRMConfig())
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    dense, labels = torch.randn(workload.BATCH_SIZE, 13), (torch.rand(workload.BATCH_SIZE) < 0.25).float()

    def step(number: int) -> None:
        logits = model(Inputs(dense, batches[number % len(batches)], ()))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    for number in range(4):
        step(number)
    _wait_for_start()
    start = perf_counter()
    for number in range(steps):
        step(number)
    return {"seconds": perf_counter() - start}


def _measure_kernels(total_rows: int, turns: int) -> dict[str, Any]:
    """Seconds of an embedding step that follows another one, and of one that follows a matrix product, in turn."""
    from slipstream import optim
    from slipstream.bench.systems import Slipstream, fill

    rows = workload.cardinalities(total_rows)
    batches = workload.zipf_batches(rows, batches=32)
    grads = [torch.randn(workload.BATCH_SIZE, len(rows) * 16) / workload.BATCH_SIZE]
    ours = Slipstream(rows, 16, batches, grads, optimizer=lambda p: optim.RowwiseAdagrad(p, lr=0.01))
    fill(ours)
    x, w = torch.randn(workload.BATCH_SIZE, 512), torch.randn(512, 256)

    def timed(number: int) -> float:
        start = perf_counter()
        ours.step(number)
        return perf_counter() - start

    for number in range(len(batches)):
        ours.step(number)
        torch.mm(x, w)
    _wait_for_start()
    alone, between = [], []
    for turn in range(turns):
        ours.step(3 * turn)  # so that what is timed next follows kernels
        alone.append(timed(3 * turn + 1))
        torch.mm(x, w)
        between.append(timed(3 * turn + 2))
    return {"alone": alone, "between": between}


if __name__ == "__main__":
    what, total_rows, repeats, threads = sys.argv[1], *map(int, sys.argv[2:5])
    torch.set_num_threads(threads)
    measure = {"train": _measure_training, "kernels": _measure_kernels}[what]
    print(json.dumps(measure(total_rows, repeats)))
