"""Bytes and time of training on two ranks over a slow link, with and without skipping inputs.

A DLRM whose tables TorchRec shards over two processes, each in a network namespace of its own, with 1 Gbit/s and a
round trip of 20 ms between them. Bytes are those that the network devices count, headers and all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from slipstream.bench import BenchOptions
from slipstream.bench.ranks_link import DEVICE, MTU, Link
from slipstream.bench.rounds import ratio
from slipstream.errors import ConfigError, NotInstalled
from slipstream.report.record import Record
from slipstream.training.termination import Termination

RATE, ROUND_TRIP = 1e9, 0.020
PORT = 29_417


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``quick`` takes fewer batches, smaller tables and one round instead of three.

    Returns:
        ``ratios``: time of full training ÷ time with the policy, for the same data. ``quality``: bytes sent over the
        link with the policy ÷ without, for the same data, and for an optimizer step.

    Raises:
        NotInstalled: TorchRec or FBGEMM is missing.
        ConfigError: Namespaces cannot be made here, or a rank failed.
    """
    for package in ("torchrec", "fbgemm_gpu"):
        if find_spec(package) is None:
            raise NotInstalled("bench ranks", "torchrec (make env-bench)")
    settings: dict[str, Any] = {
        "rows": 200_000 if options.quick else 1_000_000,
        "dim": 16,
        "batch_size": 1024,
        "warm": 8,
        "batches": 16 if options.quick else 64,
        "rounds": 1 if options.quick else 3,
        "seed": options.seed,
        "port": PORT,
    }
    with (
        Termination(),
        Link(RATE, ROUND_TRIP) as link,
        tempfile.TemporaryDirectory(prefix="slipstream-bench-") as folder,
    ):
        first, second = _play(link, settings, Path(folder))
    trip = first.pop("round trip")
    rows = [_row(name, first[name], second[name], settings) for name in first]
    full = rows[0]
    ratios = {
        row["policy"]: ratio(
            [turn["seconds"] for turn in first[row["policy"]]], [turn["seconds"] for turn in first["none"]]
        )
        for row in rows[1:]
    }
    quality: dict[str, float] = {"decisions the same on both ranks": float(all(row["same decisions"] for row in rows))}
    for row in rows[1:]:
        for key in ("bytes a batch of data", "bytes a step"):
            quality[f"{row['policy']}: {key} ÷ none"] = round(row[key] / full[key], 4)
    return Record(
        name="ranks",
        dataset=f"26 tables with Criteo Kaggle's cardinalities scaled to {settings['rows']:,} rows, ids by Zipf's law",
        conditions={
            "quick": options.quick,
            "ranks": 2,
            "threads of a rank": 1,
            "link": f"{RATE / 1e9:g} Gbit/s each way, {ROUND_TRIP * 1e3:g} ms there and back "
            f"(a byte and its answer take {trip * 1e3:.1f} ms), packets of up to {MTU} bytes; TUN devices, carried in "
            "user space",
            "bytes": f"sent by both ranks, from the devices' counters ({DEVICE}: tx_bytes), headers included",
            "a batch of data": f"{settings['batch_size']} samples that passed, kept or not",
            "tables": "TorchRec, table_wise; FBGEMM's Adagrad; dim 16",
            "rounds": settings["rounds"],
            "batches a round": settings["batches"],
            "not counted": f"the first {settings['warm']} batches of each training",
            "seed": options.seed,
        },
        ratios=ratios,
        quality=quality,
        rows=rows,
    )


def _play(link: Link, settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Runs both ranks; what each of them measured."""
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in (0, 1):
            ranks.append(_start(link, settings, folder, rank))
        while None in (codes := [process.poll() for process in ranks]) and not any(codes):
            time.sleep(0.1)
    finally:  # also after Ctrl-C, and where one has failed, for which the other waits
        for process in ranks:
            process.kill()
            process.wait()
    for rank, code in enumerate(codes):
        if code:
            said = (folder / f"said{rank}.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise ConfigError(f"rank {rank} ended with status {code} ({(said or ['it said nothing'])[-1]})")
    return [json.loads((folder / f"out{rank}.json").read_text()) for rank in (0, 1)]


def _start(link: Link, settings: dict[str, Any], folder: Path, rank: int) -> subprocess.Popen[bytes]:
    (folder / f"{rank}.json").write_text(json.dumps({**settings, "rank": rank, "address": link.addresses[0]}))
    files = [str(folder / f"{rank}.json"), str(folder / f"out{rank}.json")]
    command = link.command(rank, [sys.executable, "-m", "slipstream.bench.ranks_worker", *files])
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": DEVICE, "OMP_NUM_THREADS": "1"}
    with (folder / f"said{rank}.txt").open("wb") as said:
        return subprocess.Popen(command, env=environment, stderr=said)


def _row(
    name: str, first: list[dict[str, Any]], second: list[dict[str, Any]], settings: dict[str, Any]
) -> dict[str, Any]:
    """A policy's figures, the median of its rounds."""
    sent = [one["bytes"] + other["bytes"] for one, other in zip(first, second, strict=True)]
    steps, batches = first[0]["steps"], settings["batches"]
    seconds = median(turn["seconds"] for turn in first)
    return {
        "policy": name,
        "inputs": round(first[0]["kept"], 4),
        "steps": steps,
        "bytes a batch of data": round(median(sent) / batches),
        "bytes a step": round(median(sent) / steps),
        "seconds a batch of data": round(seconds / batches, 5),
        "seconds a step": round(seconds / steps, 5),
        "same decisions": all(turn["same decisions"] for turn in (*first, *second)),
        "last loss": round(first[0]["loss"], 4),
    }
