"""Sharing cores: two trainings side by side against one, embedding kernels between matrix products against alone.

Each measurement runs in processes of its own, since libgomp reads ``GOMP_SPINCOUNT`` when it is loaded: once with
the bounded spin that the command line sets before torch is imported, once with libgomp's default, and once with
``OMP_WAIT_POLICY=PASSIVE``. That is the evidence for the threading choices. The peers are measured alike: two of theirs
side by side against one alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch

from slipstream.bench import BenchOptions, workload
from slipstream.bench.answer import next_line
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
PEERS = ("dlrm_reference", "torchrec")
PEER_SETTINGS = ("bounded spin", "default spin")
"""The second is what a user of theirs runs with who sets nothing."""

_LIMIT_SECONDS = 600.0


class _Size(NamedTuple):
    """How much a measurement takes."""

    total_rows: int
    train_steps: int
    kernel_turns: int
    repeats: int
    """Turns of ours."""
    peer_repeats: int


class _Sharing(NamedTuple):
    """Seconds of a training, one figure a turn."""

    alone: list[float]
    each: list[float]
    """Of each of two that run at once, one after the other."""

    @property
    def slowdown(self) -> float:
        return float(np.median(self.each) / np.median(self.alone))


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``quick`` measures the bounded spin alone, on 100,000 rows.

    Returns:
        For each setting in ``ratios``: ``alone_over_each …`` (a training's time alone over its time beside a second
        one; 0.5 is perfect sharing of the cores, 0.4 the least allowed), the same for the peers,
        ``beside_another/<peer> …`` (the peer's time beside a second one of its kind ÷ ours beside a second of ours) and
        ``kernels_alone_over_between_matmuls …`` (at least 1 / 1.15). ``quality`` holds the same as slow-downs, and for
        the kernels also that on one thread, where only the caches can be the cause.
    """
    size = _Size(100_000, 10, 30, 1, 1) if options.quick else _Size(1_000_000, 30, 150, 3, 2)
    threads = options.threads or torch.get_num_threads()
    record = Record(
        name="shared",
        dataset=f"DLRM as in the step benchmark, Criteo Kaggle's cardinalities scaled to {size.total_rows:,} rows",
        conditions={
            "quick": options.quick,
            "batch_size": workload.BATCH_SIZE,
            "threads of each process": threads,
            "steps of a training": size.train_steps,
            "optimizer": "SGD",
            "unit": "seconds a training (set-up and first steps not counted); seconds an embedding step",
            "settings": SETTINGS,
            "peers": "dlrm_reference: plain torch, sparse EmbeddingBag; torchrec: FusedEmbeddingBagCollection, SGD "
            "fused into backward; both with the same dense layers",
        },
    )
    peers = [peer for peer in PEERS if peer != "torchrec" or (find_spec("torchrec") and find_spec("fbgemm_gpu"))]
    if len(peers) < len(PEERS):
        record.conditions["missing_peers"] = ["torchrec is not installed; install the peers with `make env-bench`"]
    for name in list(SETTINGS)[: 1 if options.quick else None]:
        ours = _train(record, "slipstream", name, threads, size)
        for peer in peers if name in PEER_SETTINGS else ():
            theirs = _train(record, peer, name, threads, size)
            beside = float(np.median(theirs.each) / np.median(ours.each))
            record.ratios[f"beside_another/{peer} {name}"] = round(beside, 3)
        _kernels(record, name, threads, size)
    return record


def _train(record: Record, system: str, setting: str, threads: int, size: _Size) -> _Sharing:
    """Measures trainings of a system, one alone and two side by side in turn, and records them."""
    found, ours = _Sharing([], []), system == "slipstream"
    with _workers(SETTINGS[setting], [system, size.total_rows, size.train_steps, threads], copies=2) as pair:
        for _ in range(size.repeats if ours else size.peer_repeats):
            found.alone.extend(figures["seconds"] for figures in _measured(pair[:1]))
            found.each.extend(figures["seconds"] for figures in _measured(pair))
    title = "training" if ours else f"training of {system}"
    record.rows += [
        {"system": f"{title} alone", "setting": setting, **summarise(found.alone), "runs": len(found.alone)},
        {"system": f"{title} beside another", "setting": setting, **summarise(found.each), "runs": len(found.each)},
    ]
    record.ratios[f"alone_over_each {setting}" if ours else f"alone_over_each {setting}, {system}"] = round(
        1 / found.slowdown, 3
    )
    of = "" if ours else f" of {system}"
    record.quality[f"slowdown of each of two trainings{of}, {setting}"] = round(found.slowdown, 3)
    return found


def _kernels(record: Record, setting: str, threads: int, size: _Size) -> None:
    """Measures and records the embedding kernels after matrix products, against after themselves."""
    seconds: list[dict[str, list[float]]] = []
    # On one thread no pools can compete: what a matmul costs the kernels then, it costs by filling the caches.
    for count in (threads, 1):
        arguments = ["kernels", size.total_rows, size.kernel_turns, count]
        with _workers(SETTINGS[setting], arguments, copies=1) as workers:
            seconds += _measured(workers)
    between, cache = (float(np.median(np.asarray(s["between"]) / np.asarray(s["alone"]))) for s in seconds)
    record.rows += [
        {"system": f"kernels {title}", "setting": setting, **summarise(seconds[0][key])}
        for key, title in (("alone", "alone"), ("between", "between matmuls"))
    ]
    record.ratios[f"kernels_alone_over_between_matmuls {setting}"] = round(1 / between, 3)
    record.quality[f"slowdown of the kernels between matmuls, {setting}"] = round(between, 3)
    record.quality[f"the same on one thread, by the caches alone, {setting}"] = round(cache, 3)
    record.quality[f"slowdown of the kernels by sharing threads, {setting}"] = round(between / cache, 3)


@contextmanager
def _workers(
    environment: dict[str, str], arguments: Sequence[Any], *, copies: int
) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of ``slipstream.bench.shared_worker`` that are ready, and gone afterwards."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-m", "slipstream.bench.shared_worker", *map(str, arguments)]
    workers = [
        subprocess.Popen(command, env=inherited | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(copies)
    ]
    try:
        for worker in workers:
            if _line(worker) != "ready":
                raise _failure(worker)
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _measured(workers: Sequence[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """What processes measure that begin at the same time."""
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    lines = [(worker, _line(worker)) for worker in workers]
    for worker, line in lines:
        if not line:
            raise _failure(worker)
    return [json.loads(line) for _, line in lines]


def _line(worker: subprocess.Popen[str]) -> str:
    """A process's next line; empty where it has ended.

    Raises:
        WorkerFailed: It takes too long.
    """
    try:
        return next_line(worker, _LIMIT_SECONDS).strip()
    except TimeoutError as error:
        raise WorkerFailed(f"{_command(worker)} {error}") from error


def _failure(worker: subprocess.Popen[str]) -> WorkerFailed:
    return WorkerFailed(f"{_command(worker)} failed; its error is printed above")


def _command(worker: subprocess.Popen[str]) -> str:
    command = list(map(str, worker.args)) if isinstance(worker.args, list) else [str(worker.args)]
    return f"the process {' '.join(command[1:])}"
