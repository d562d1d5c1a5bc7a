"""Memory: the most each system's process holds, and bytes a row by optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.peers import catalogue, datasets
from benchmarks.peers.catalogue import System
from benchmarks.peers.common import Options, conditions, without_paths
from benchmarks.peers.processes import NotThere, PeerFailed, opened
from benchmarks.peers.protocol import Job, Spent, Steps

from slipstream.report.record import Record

DIM, BATCH, ROWS = 64, 2048, 2_000_000
LIKE_FOR_LIKE: Mapping[str, str] = {
    "dlrm_reference sgd": "slipstream sgd",
    "dlrm_reference adagrad": "slipstream adagrad",
    "torchrec rowwise_adagrad": "slipstream rowwise_adagrad",
    "fuxictr adam": "slipstream adam",
    "xdl sgd": "slipstream sgd",
}


def _systems() -> dict[str, tuple[System, dict[str, Any]]]:
    """By name of system and optimizer: the system and what differs from its settings."""
    own = catalogue.CLICKS
    ours = {
        f"slipstream {name}": (own["slipstream"], {"optimizer": {"name": name, "lr": 0.01}})
        for name in ("sgd", "rowwise_adagrad", "adagrad", "adam")
    }
    return {
        **ours,
        "dlrm_reference sgd": (own["dlrm_reference"], {}),
        "dlrm_reference adagrad": (own["dlrm_reference_adagrad"], {}),
        "torchrec rowwise_adagrad": (own["torchrec"], {}),
        "fuxictr adam": (own["fuxictr"], {"batch_size": BATCH}),
        "xdl sgd": (own["xdl"], {}),
    }


def run(options: Options) -> Record:
    """Measure: each system alone, a few steps."""
    rows = 200_000 if options.quick else ROWS
    data = datasets.criteo_shaped(rows, 16_384, options.cache)
    data = replace(data, batch_size=BATCH, model={**data.model, "dim": DIM})
    record = Record(name="peers_memory", dataset=data.title)
    for name, (system, changes) in _systems().items():
        if not catalogue.chosen({name: system}, options.peers):
            continue
        python = options.python(name, system)
        if python is None:
            continue
        settings = system.settings(data) | changes
        job = Job(system.module, str(data.folder), list(data.train), list(data.test), settings, options.threads, 0)
        try:
            with opened(python, name, job) as (worker, answer, _):
                options.note(system, answer)
                worker.ask(Steps(2 if options.quick else 5), Spent)
                closed = worker.close()
        except (NotThere, PeerFailed) as error:
            options.left_out[name] = without_paths(str(error))
            continue
        record.rows.append(
            {
                "system": name,
                "peak RSS MiB": round(closed.peak_rss / 2**20),
                "libraries MiB": round(answer.rss_before / 2**20),
                "bytes a row": round((closed.peak_rss - answer.rss_before) / answer.rows, 1),
                "rows": answer.rows,
                "of which tables and state": round(answer.table_bytes / answer.rows, 1),
            }
        )
    peaks = {row["system"]: row["peak RSS MiB"] for row in record.rows}
    record.ratios = {
        f"peak_rss/{peer.replace(' ', '_')}": round(peaks[peer] / peaks[ours], 3)
        for peer, ours in LIKE_FOR_LIKE.items()
        if peer in peaks and ours in peaks
    }
    record.versions |= options.versions
    record.conditions = conditions(
        options,
        **{
            "dim": DIM,
            "batch size": BATCH,
            "bytes a row": "most resident memory of the process less that of its libraries, by rows: activations and "
            "the batch are in it",
            "of which tables and state": "bytes of the tensors before the first step",
        },
    )
    return record
