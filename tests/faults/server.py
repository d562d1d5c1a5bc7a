"""Does jobs in children that may be killed: it has imported and compiled everything, so that a child starts at once.

A job is a line of JSON on standard input: {"kind": "prepare" or "train", …}. Answers on standard output: the child's
process id, then, when it has ended, its wait status.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch

from slipstream.data.prepare import prepare
from slipstream.data.store import Store
from slipstream.errors import OutputError
from slipstream.training import RunStarted, TrainConfig, train
from slipstream.training.events import Event
from slipstream.training.warm_up import warm_up

CANNOT_WRITE = 7
"""Exit status of a job that ended in an OutputError."""
LIMITS = resource.getrlimit(resource.RLIMIT_FSIZE)
WATCHED = ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "unlink"), (os, "mkdir"), (shutil, "rmtree"))


def die_at(call: int) -> None:
    """Kills this process in the ``call``-th call that makes writing safe: before it, or, if odd, after it."""
    left = [call]

    def watched(original: Any) -> Any:
        def function(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and call % 2 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **options)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return function

    for module, name in WATCHED:
        setattr(module, name, watched(getattr(module, name)))


class Begun:
    """Writes the sample from which the training goes on into the file that the job names, if it does."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.file = job.get("begun")

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted) and self.file is not None:
            Path(self.file).write_text(json.dumps(event.resumed_at))


def work(job: dict[str, Any]) -> None:
    """Does a job."""
    if "die_at" in job:
        die_at(job["die_at"])
    if "most_bytes" in job:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["most_bytes"], LIMITS[1]))
    if job["kind"] == "prepare":
        prepare(job["source"], job["out"], overwrite=True)
    else:
        train(TrainConfig.model_validate(job["config"]), resume=True, listeners=[Begun(job)])


def main() -> None:
    """Serves until standard input ends."""
    torch.set_num_threads(1)
    for job in json.loads(sys.argv[1]):
        config = TrainConfig.model_validate(job)
        warm_up(config, Store.open(config.data))
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                work(job)
            except OutputError as error:
                resource.setrlimit(resource.RLIMIT_FSIZE, LIMITS)
                Path(job["said"]).write_text(str(error))
                os._exit(CANNOT_WRITE)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()
