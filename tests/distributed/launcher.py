"""Forks ranks of a process that has imported and compiled everything, round by round.

``python launcher.py ROUNDS.json``. A round: {"world": W, "jobs": [configurations, trained one after the other],
"kill": [rank, file whose appearance is waited for] or null, "signal": what it gets (SIGKILL), "silence": seconds,
"said": folder for what the ranks write to standard error, "pause": [file, seconds for which all are stopped then],
"own": {rank: settings of its own}, "fails": a rank that runs out of memory in place of training}.
Answers with the exit statuses of each round's ranks and the seconds from the kill to the last one's end, as JSON.
"""

from __future__ import annotations

import glob
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch

from slipstream.data.store import Store
from slipstream.errors import SlipstreamError
from slipstream.training import TrainConfig, train
from slipstream.training.ranks import Ranks
from slipstream.training.warm_up import warm_up


def work(rank: int, port: int, entry: dict[str, Any]) -> int:
    """Trains as one rank; the exit status."""
    world = str(entry["world"])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    said = os.open(Path(entry["said"]) / f"rank{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 2)
    try:
        for job in entry["jobs"]:
            config = TrainConfig.model_validate(job | entry.get("own", {}).get(str(rank), {}))
            with Ranks(silence=entry.get("silence", 30.0)) as ranks:
                if rank == entry.get("fails"):
                    raise MemoryError("no room\nfor this")
                train(config, resume=config.out is not None, ranks=ranks)
    except SlipstreamError as error:
        if not error.said_elsewhere:
            print(error, file=sys.stderr, flush=True)
        return 2
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    return 0


def await_file(pattern: str) -> None:
    """Returns once there is such a file, or after a minute."""
    end = time.monotonic() + 60
    while not glob.glob(pattern) and time.monotonic() < end:
        time.sleep(0.005)


def play(entry: dict[str, Any]) -> dict[str, Any]:
    """One round."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path(entry["said"]).mkdir(parents=True, exist_ok=True)
    children: list[int] = []
    for rank in range(entry["world"]):
        child = os.fork()
        if child == 0:
            # Not through the interpreter's end: see slipstream.cli.entry.
            os._exit(work(rank, port, entry))
        children.append(child)
    began = time.monotonic()
    if entry.get("kill"):
        rank, pattern = entry["kill"]
        await_file(pattern)
        os.kill(children[rank], entry.get("signal", signal.SIGKILL))
        began = time.monotonic()
    if entry.get("pause"):
        pattern, seconds = entry["pause"]
        await_file(pattern)
        for child in children:
            os.kill(child, signal.SIGSTOP)
        time.sleep(seconds)
        for child in children:
            os.kill(child, signal.SIGCONT)
            time.sleep(1.0)  # the first one awake sees no sign of the others yet
    hangs = entry.get("signal") == signal.SIGSTOP
    others = [child for child in children if not (hangs and child == children[rank])]
    ended = {child: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in others}
    seconds = time.monotonic() - began
    for child in children:
        if child not in ended:
            os.kill(child, signal.SIGKILL)
            ended[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    statuses = [ended[child] for child in children]
    return {"statuses": statuses, "seconds": seconds}


def main() -> None:
    """Plays all rounds."""
    torch.set_num_threads(1)
    rounds = json.loads(Path(sys.argv[1]).read_text())
    for job in {json.dumps(job.get("policy")): job for entry in rounds for job in entry["jobs"]}.values():
        config = TrainConfig.model_validate(job)
        warm_up(config, Store.open(config.data))
    print(json.dumps([play(entry) for entry in rounds]))


if __name__ == "__main__":
    main()
