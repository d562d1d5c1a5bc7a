"""Memory: the most each system's process holds, and bytes a row by optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.peers import catalogue, datasets
from benchmarks.peers.catalogue import System
from benchmarks.peers.common import Options, conditions, without_paths
from benchmarks.peers.datasets import Dataset
from benchmarks.peers.processes import NotThere, PeerFailed, starting
from benchmarks.peers.protocol import Job, Opened, Spent, Steps
from benchmarks.peers.resident import Watch

from slipstream.report.record import Record

DIM, BATCH, ROWS = 64, 2048, 2_000_000
LIKE_FOR_LIKE: Mapping[str, str] = {
    "dlrm_reference": "slipstream sgd",
    "dlrm_reference_adagrad": "slipstream adagrad",
    "torchrec": "slipstream rowwise_adagrad",
    "fuxictr": "slipstream adam",
    "xdl": "slipstream sgd",
}
"""Which of ours each peer is set against: that with the same optimizer for the tables."""
RATIOS: Mapping[str, str] = {"peak_rss": "peak RSS MiB", "peak_anonymous": "peak anonymous MiB"}


def _systems() -> dict[str, tuple[System, dict[str, Any]]]:
    """By name: the system and what differs from its settings."""
    own = catalogue.CLICKS
    ours = {
        name: (own["slipstream"], {"optimizer": {"name": name.split()[1], "lr": 0.01}})
        for name in ("slipstream sgd", "slipstream rowwise_adagrad", "slipstream adagrad", "slipstream adam")
    }
    peers = {name: (own[name], {"batch_size": BATCH} if name == "fuxictr" else {}) for name in LIKE_FOR_LIKE}
    return ours | peers


def run(options: Options) -> Record:
    """Measure: each system alone, a few steps."""
    rows = 200_000 if options.quick else ROWS
    data = datasets.criteo_shaped(rows, 16_384, options.cache)
    data = replace(data, batch_size=BATCH, model={**data.model, "dim": DIM})
    record = Record(name="peers_memory", dataset=data.title)
    for name, (system, changes) in _systems().items():
        if catalogue.chosen({name: system}, options.peers, options.systems):
            found = _measured(name, system, changes, data, options)
            record.rows += [] if found is None else [found]
    of = {row["system"]: row for row in record.rows}
    record.ratios = {
        f"{key}/{peer}": round(of[peer][figure] / of[ours][figure], 3)
        for key, figure in RATIOS.items()
        for peer, ours in LIKE_FOR_LIKE.items()
        if peer in of and ours in of
    }
    record.versions |= options.versions
    record.conditions = conditions(
        options,
        **{
            "dim": DIM,
            "batch size": BATCH,
            "set against": dict(LIKE_FOR_LIKE),
            "peak RSS": "as the kernel counts it: anonymous pages and the touched ones of files (libraries, data); "
            "clean pages of files are shared between processes and can be taken back",
            "peak anonymous": "what no file stands behind and nobody shares: tables, state, activations, Python's heap",
            "libraries": "once the system's module is imported, before anything is made",
            "bytes a row": "peak anonymous less that of the libraries, by rows: activations and the batch are in it",
            "of which tables and state": "bytes of the tensors after the last step",
        },
    )
    return record


def _measured(
    name: str, system: System, changes: Mapping[str, Any], data: Dataset, options: Options
) -> dict[str, Any] | None:
    """A system's row; None, with a reason in ``left_out``, where it cannot take part."""
    python = options.python(name, system)
    if python is None:
        return None
    settings = system.settings(data) | changes
    job = Job(system.module, str(data.folder), list(data.train), list(data.test), settings, options.threads, 0)
    try:
        with starting(python, name, job) as (worker, _), Watch(worker.process.pid) as watch:
            answer = worker.receive(Opened)
            options.note(system, answer)
            worker.ask(Steps(2 if options.quick else 5), Spent)
            closed = worker.close()
    except (NotThere, PeerFailed) as error:
        options.left_out[name] = without_paths(str(error))
        return None
    return {
        "system": name,
        "peak RSS MiB": _mebibytes(closed.peak_rss),
        "peak anonymous MiB": _mebibytes(watch.most.anonymous),
        "most of files MiB": _mebibytes(watch.most.file),
        "libraries MiB": _mebibytes(answer.rss_before),
        "of which anonymous MiB": _mebibytes(answer.anonymous_before),
        "bytes a row": round((watch.most.anonymous - answer.anonymous_before) / answer.rows, 1),
        "rows": answer.rows,
        "of which tables and state": round(closed.table_bytes / answer.rows, 1),
    }


def _mebibytes(size: int) -> int:
    return round(size / 2**20)
