"""SIGKILL at any moment, in preparation, in training and within the writing of checkpoints: nothing is lost or left.

``make faults KILLS=200``; by default 10 kills.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.outcome import outcome

from slipstream.data.prepare import prepare

KILLS = int(os.environ.get("KILLS", "10"))
BASE: dict[str, Any] = {
    "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8], "first_order": True},
    "optimizer": {"name": "adagrad", "lr": 0.05, "embedding_lr": 0.1},
    "batch_size": 32,
    "log_every": 5,
    "threads": 1,
    "checkpoint": {"steps": 4, "minutes": None},
}
RUNS: list[dict[str, Any]] = [
    {"epochs": 2, "shuffle": True},
    {"mode": "prequential", "chunk_size": 400, "policy": {"name": "importance", "warmup_samples": 200, "bits": 10}},
    {"policy": {"name": "psse", "budget": 0.7, "warmup_steps": 10, "every": 7}, "optimizer": {"name": "adam"}},
]


class Server:
    """Starts jobs and, if asked to, kills them."""

    def __init__(self, runs: list[dict[str, Any]]) -> None:
        command = [sys.executable, str(Path(__file__).with_name("server.py")), json.dumps(runs)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, job: dict[str, Any], *, kill_after: float | None = None) -> int:
        """The wait status; ``kill_after`` in seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        child = int(self._line())
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):  # it was done sooner
                os.kill(child, signal.SIGKILL)
        return int(self._line())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw clicks and their prepared form."""
    folder = tmp_path_factory.mktemp("kills")
    draw = np.random.default_rng(0)
    users, items, labels = draw.integers(0, 60, 2500), draw.integers(0, 40, 2500), draw.integers(0, 2, 2500)
    rows = (f"{y},{t},u{u},i{i},{u / 7}" for t, (u, i, y) in enumerate(zip(users, items, labels, strict=True)))
    (folder / "raw.csv").write_text("\n".join(["label,time,user,item,price", *rows, ""]), encoding="utf-8")
    prepare(folder / "raw.csv", folder / "data")
    return folder


@pytest.fixture(scope="module")
def server(project: Path) -> Iterator[Server]:
    server = Server([{**BASE, "data": str(project / "data"), **run} for run in RUNS])
    yield server
    assert server.process.stdin is not None
    server.process.stdin.close()
    server.process.wait(timeout=30)


def orphans(folder: Path) -> list[str]:
    return [entry.name for entry in folder.rglob("*") if ".partial-" in entry.name or ".stage-" in entry.name]


@pytest.mark.timeout(1800)
def test_whatever_is_killed_goes_on_to_the_same_bits(server: Server, project: Path) -> None:
    draw = random.Random(KILLS)
    wanted: dict[int, Any] = {}
    kills = rounds = 0
    while kills < KILLS:
        number = rounds % (len(RUNS) + 1)
        rounds += 1
        if number == len(RUNS):
            out = project / "again"
            job: dict[str, Any] = {"kind": "prepare", "source": str(project / "raw.csv"), "out": str(out)}
            longest, calls = 0.15, 30
        else:
            out = project / f"run{number}"
            config = {**BASE, "data": str(project / "data"), "out": str(out), **RUNS[number]}
            job = {"kind": "train", "config": config}
            longest, calls = 1.0, 250
            if number not in wanted:
                assert server.do(job) == 0
                wanted[number] = outcome(out)
                shutil.rmtree(out)
        status, deaths = -1, 0
        while status != 0 and deaths < 6 and kills < KILLS:
            if draw.random() < 0.5:
                status = server.do({**job, "die_at": draw.randint(1, calls)})
            else:
                status = server.do(job, kill_after=draw.uniform(0, longest))
            assert status in (0, signal.SIGKILL), "it ends well, or killed: never in an error"
            deaths += status != 0
            kills += status != 0
        assert server.do(job) == 0
        assert orphans(project) == [], "the next start leaves nothing behind"
        if number == len(RUNS):
            first, again = (json.loads((folder / "store.json").read_text()) for folder in (project / "data", out))
            assert first["files"] == again["files"]
        else:
            assert outcome(out) == wanted[number]
        shutil.rmtree(out)
    print(f"{kills} kills, {rounds} trainings and preparations finished, all bit-equal")


def saved(out: Path) -> list[int]:
    """Steps of the checkpoints there are."""
    folder = out / "checkpoints"
    return sorted(int(entry.name[len("step-") :]) for entry in folder.iterdir()) if folder.exists() else []


def goes_on(server: Server, config: dict[str, Any], step: int | None, begun: Path) -> bool:
    """Whether the training, from the checkpoint of a step (None: from its start), ends as it does without a fault."""
    out, free = Path(config["out"]), begun.with_name("free")
    assert server.do({"kind": "train", "config": config, "begun": str(begun)}) == 0
    assert json.loads(begun.read_text()) == (None if step is None else step * BASE["batch_size"])
    assert server.do({"kind": "train", "config": {**config, "out": str(free)}}) == 0
    same = outcome(out) == outcome(free)
    shutil.rmtree(free)
    return same


def test_a_file_that_may_not_grow_ends_in_one_line_and_the_rest_goes_on(server: Server, project: Path) -> None:
    """As on a full disk: writing fails in the middle of a file. Manifests grow by what metrics.jsonl holds so far."""
    out, said, begun = project / "full", project / "said.txt", project / "begun.txt"
    config = {**BASE, "data": str(project / "data"), "out": str(out)}
    newest: list[int | None] = [None]
    for most, fits in ((0, False), (600, False), (5000, False), (13_000, True), (15_000, True)):
        job = {"kind": "train", "config": config, "most_bytes": most, "said": str(said)}
        job |= {"begun": str(begun)} if fits else {}
        assert os.waitstatus_to_exitcode(server.do(job)) == 7
        assert "cannot be written" in said.read_text() and "\n" not in said.read_text()
        assert orphans(out) == []
        assert bool(saved(out)) == fits, "checkpoints before the fault are there"
        if fits:
            before, now = newest[-1], saved(out)[-1]
            assert json.loads(begun.read_text()) == (None if before is None else before * BASE["batch_size"])
            assert now > (before or 0), "it has come further"
            newest.append(now)
    assert goes_on(server, config, newest[-1], begun)


@pytest.mark.parametrize(("size", "fits"), [("24k", False), ("64k", True)])
def test_a_full_disk_ends_in_one_line_and_the_rest_goes_on(
    server: Server, project: Path, tmp_path: Path, size: str, fits: bool
) -> None:
    small, said = tmp_path / "small", project / "said.txt"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small tmpfs")
    try:
        config = {**BASE, "data": str(project / "data"), "out": str(small / "run")}
        job = {"kind": "train", "config": config, "said": str(said)}
        assert os.waitstatus_to_exitcode(server.do(job)) == 7
        assert "No space left" in said.read_text()
        assert orphans(small) == []
        steps = saved(small / "run")
        assert bool(steps) == fits
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        assert goes_on(server, config, steps[-1] if steps else None, project / "begun.txt")
    finally:
        subprocess.run(["umount", str(small)], check=True)
