"""``slipstream train`` on 2 and 4 gloo processes: what one process would do, killed ranks, restarts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import write_store

from slipstream.training import Result, TrainConfig, train
from slipstream.training.config import save_config

BASE: dict[str, Any] = {
    "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8], "first_order": True},
    "optimizer": {"name": "adagrad", "lr": 0.05, "embedding_lr": 0.1},
    "batch_size": 64,
    "log_every": 5,
    "threads": 1,
    "checkpoint": {"steps": 10, "minutes": None},
}
MF = {"name": "mf", "embedding_dim": 4, "objective": "bpr"}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "none, shuffled, two epochs": (2, {"epochs": 2, "shuffle": True}),
    "importance, prequential": (
        4,
        {"mode": "prequential", "chunk_size": 400, "policy": {"name": "importance", "warmup_samples": 200, "bits": 10}},
    ),
    "random, clipped": (4, {"policy": "random", "optimizer": {"name": "adam", "clip": 0.5}}),
    "psse, adam": (2, {"policy": {"name": "psse", "warmup_steps": 10, "every": 7}, "optimizer": {"name": "adam"}}),
    "psse, sketch, clipped": (
        4,
        {
            "policy": {"name": "psse", "warmup_steps": 10, "every": 7, "scores": "sketch", "sketch_width": 256},
            "optimizer": {"name": "sgd", "clip": 0.5},
        },
    ),
    "saturation": (2, {"policy": {"name": "saturation", "warmup_steps": 10, "every": 5, "min_updates": 5}}),
    "guard": (2, {"policy": {"name": "guard", "first_copy": 200, "measure_every": 2, "auc_tolerance": 0.1}}),
    "slipstream periodic": (
        2,
        {"policy": {"name": "slipstream", "mode": "periodic", "every": 12, "window": 3, "hot_bytes": 400}},
    ),
    "order": (2, {"policy": {"name": "order", "hot_bytes": 400}}),
    "combined": (
        4,
        {"policy": {"name": "combine", "inputs": "random", "rows": {"name": "psse", "warmup_steps": 5, "every": 4}}},
    ),
    "pairs": (4, {"model": MF}),
}
LONG = {"epochs": 3, "shuffle": True, "policy": {"name": "psse", "budget": 0.7, "warmup_steps": 10, "every": 7}}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def outcome(folder: Path) -> Any:
    """Weights, metrics and result, but for times and the like."""

    def without_times(tree: Any) -> Any:
        if isinstance(tree, dict):
            timed = ("seconds", "samples_per_second", "bytes_exchanged", "commit")
            return {key: without_times(value) for key, value in tree.items() if not key.endswith(timed)}
        return [without_times(entry) for entry in tree] if isinstance(tree, list) else tree

    metrics = [without_times(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    weights = {name: value.numpy().tobytes() for name, value in load_file(folder / "model.safetensors").items()}
    return weights, metrics, without_times(json.loads((folder / "result.json").read_text()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_store(folder / "data", 2530)
    return folder


@pytest.fixture(scope="module")
def played(folder: Path) -> dict[str, Any]:
    """All rounds, in one start of the launcher."""
    base = {**BASE, "data": str(folder / "data")}
    long = {**base, **LONG}
    rounds: dict[str, dict[str, Any]] = {}
    for world in (2, 4):
        jobs = [{**base, **case, "out": str(folder / name)} for name, (ranks, case) in CASES.items() if ranks == world]
        rounds[f"{world} ranks"] = {"world": world, "jobs": jobs}
    rounds["uninterrupted"] = {"world": 4, "jobs": [{**long, "out": str(folder / "whole")}]}
    killed = [{**long, "out": str(folder / "killed")}]
    kill = [2, str(folder / "killed" / "checkpoints" / "step-*")]
    rounds["killed"] = {"world": 4, "jobs": killed, "kill": kill}
    rounds["again"] = {"world": 4, "jobs": killed}
    hung = {
        "jobs": [{**long, "epochs": 30, "out": str(folder / "hung")}],
        "signal": int(signal.SIGSTOP),
        "silence": 6.0,
    }
    rounds["hung"] = {"world": 2, "kill": [1, str(folder / "hung" / "checkpoints" / "step-*")], **hung}
    rounds["uninterrupted 2"] = {"world": 2, "jobs": [{**long, "out": str(folder / "whole2")}]}
    asked = {"world": 2, "jobs": [{**long, "out": str(folder / "asked")}]}
    kill = [1, str(folder / "asked" / "checkpoints" / "step-*")]
    rounds["asked"] = {**asked, "kill": kill, "signal": int(signal.SIGTERM)}
    rounds["asked again"] = asked.copy()
    frozen = {**hung, "jobs": [{**long, "epochs": 30, "out": str(folder / "frozen")}], "silence": 3.0}
    rounds["frozen"] = {"world": 2, "kill": [0, str(folder / "frozen" / "checkpoints" / "step-*")], **frozen}
    paused = {"jobs": [{**long, "out": str(folder / "paused")}], "silence": 4.0}
    rounds["paused"] = {"world": 2, "pause": [str(folder / "paused" / "checkpoints" / "step-*"), 6.0], **paused}
    rounds["fails"] = {"world": 2, "jobs": [base], "fails": 1}
    following = {**long, "epochs": 1, "continue_from": str(folder / "whole2"), "out": str(folder / "following")}
    rounds["following"] = {"world": 2, "jobs": [following]}
    lost = {"out": str(folder / "astray"), "epochs": 1}
    rounds["astray"] = {"world": 2, "jobs": [following | lost], "own": {1: {"continue_from": str(folder / "asked")}}}
    rounds["wrong"] = {"world": 2, "jobs": [{**base, "engine": "torch"}]}
    for name, entry in rounds.items():
        entry["said"] = str(folder / "said" / name)
    file = folder / "rounds.json"
    file.write_text(json.dumps(list(rounds.values())))
    command = [sys.executable, str(Path(__file__).with_name("launcher.py")), str(file)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=280)
    assert done.returncode == 0
    return dict(zip(rounds, json.loads(done.stdout), strict=True))


def said(folder: Path, name: str) -> list[str]:
    files = sorted((folder / "said" / name).glob("rank*.txt"))
    return [file.read_text() for file in files]


@pytest.mark.parametrize("name", CASES)
def test_ranks_do_what_one_process_does(played: dict[str, Any], folder: Path, name: str) -> None:
    world, case = CASES[name]
    assert played[f"{world} ranks"]["statuses"] == [0] * world, said(folder, f"{world} ranks")
    config = TrainConfig.model_validate({**BASE, **case, "data": folder / "data", "out": folder / "alone" / name})
    alone, together = train(config), Result.load(folder / name / "result.json")
    assert (together.ranks, together.samples, together.steps) == (world, alone.samples, alone.steps)
    assert together.share_of_inputs_trained == alone.share_of_inputs_trained
    assert together.log_loss == pytest.approx(alone.log_loss, abs=1e-6)
    ours, theirs = (load_file(folder / part / "model.safetensors") for part in (name, f"alone/{name}"))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-6, msg=lambda text, k=key: f"{k}: {text}")
    if "share_of_rows_updated" in alone.policy_report:
        assert together.policy_report == alone.policy_report


def test_a_killed_rank_ends_the_others_and_all_go_on_to_the_same_bits(played: dict[str, Any], folder: Path) -> None:
    killed = played["killed"]
    assert killed["statuses"] == [2, 2, -9, 2] and killed["seconds"] < 60
    for rank in (0, 1, 3):
        text = said(folder, "killed")[rank]  # Gloo may have put a warning of its own before ours
        # One that a busy machine keeps from the roll call finds that rank 0 has said so, and left.
        gone = "rank 2 of 4" if rank == 0 or "meeting point" not in text else "rank 0, or the machine of the launcher,"
        assert f"{gone} is gone; start all ranks again with --resume" in text.splitlines()[-1]
        assert "Traceback" not in text
    assert played["again"]["statuses"] == [0, 0, 0, 0], said(folder, "again")
    assert outcome(folder / "killed") == outcome(folder / "whole")


def test_ranks_of_which_one_is_asked_to_end_save_and_end(played: dict[str, Any], folder: Path) -> None:
    assert played["asked"]["statuses"] == [2, 2] and played["asked again"]["statuses"] == [0, 0]
    first, second = said(folder, "asked")
    assert "asked to end (SIGTERM); saved; go on with --resume" in first and second == ""
    assert outcome(folder / "asked") == outcome(folder / "whole2")


def test_a_rank_that_hangs_ends_the_others(played: dict[str, Any], folder: Path) -> None:
    assert played["hung"]["statuses"] == [2, -9] and played["hung"]["seconds"] < 60
    assert "rank 1 of 2 gave no sign of life for 6 s" in said(folder, "hung")[0]


def test_a_meeting_point_that_hangs_ends_the_others(played: dict[str, Any], folder: Path) -> None:
    assert played["frozen"]["statuses"] == [-9, 2] and played["frozen"]["seconds"] < 60
    assert "the meeting point has not answered for 3 s: rank 0, or the launcher, hangs" in said(folder, "frozen")[1]


def test_ranks_that_were_all_stopped_for_a_while_go_on(played: dict[str, Any], folder: Path) -> None:
    assert played["paused"]["statuses"] == [0, 0], said(folder, "paused")
    assert outcome(folder / "paused") == outcome(folder / "whole2")


def test_errors_of_any_kind_are_told_to_the_others(played: dict[str, Any], folder: Path) -> None:
    assert played["fails"]["statuses"] == [2, 1]
    assert "rank 1 stopped with an error: MemoryError: no room; start all ranks again" in said(folder, "fails")[0]


def test_ranks_that_continue_other_runs_are_refused(played: dict[str, Any], folder: Path) -> None:
    assert played["following"]["statuses"] == [0, 0], said(folder, "following")
    assert played["astray"]["statuses"] == [2, 2]
    first, second = said(folder, "astray")
    assert "the ranks have different runs to continue from; copy one run to all machines" in first and second == ""


def rank_of(launcher: int, rank: int) -> int | None:
    """The process of a rank that torchrun (process ``launcher``) has started, None while there is none."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    return None


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks' processes in /proc")
@pytest.mark.parametrize("machines", [1, 2])
def test_torchrun_starts_the_ranks_again_and_nothing_is_lost(
    played: dict[str, Any], folder: Path, machines: int
) -> None:
    """On two machines only the one whose rank was killed counts the restart; rank 0 goes on all the same."""
    config = TrainConfig.model_validate({**BASE, **LONG, "data": folder / "data"})
    save_config(config, folder / "long.yaml")
    out, log = folder / f"restarted{machines}", folder / f"torchrun{machines}.txt"
    command = [sys.executable, "-m", "torch.distributed.run", "--max-restarts=1", f"--nproc-per-node={2 // machines}"]
    if machines == 1:
        command += [f"--master-port={free_port()}"]
    else:
        command += ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}", "--rdzv-id=a"]
    command += ["-m", "slipstream", "train", "--quiet", "--distributed"]
    command += ["--config", str(folder / "long.yaml"), "--out", str(out)]
    with log.open("w") as said_by_all:
        launchers = [subprocess.Popen(command, stdout=said_by_all, stderr=said_by_all) for _ in range(machines)]
        while not list(out.glob("checkpoints/step-*")) and launchers[0].poll() is None:
            time.sleep(0.005)
        victims = [rank for launcher in launchers if (rank := rank_of(launcher.pid, 1)) is not None]
        assert victims, log.read_text()
        os.kill(victims[0], signal.SIGKILL)
        assert [launcher.wait(timeout=120) for launcher in launchers] == [0] * machines, log.read_text()
    assert outcome(out) == outcome(folder / "whole2")
    assert "rank 1 of 2 is gone; start all ranks again" in log.read_text()


def test_what_all_ranks_run_into_is_said_once(played: dict[str, Any], folder: Path) -> None:
    assert played["wrong"]["statuses"] == [2, 2]
    first, second = said(folder, "wrong")
    assert "engine torch has sparse gradients" in first and second == ""
