"""Trainings that were interrupted, one for each way that the tests of resuming know: what checkpoints keep differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.fuzz.folders import lasting_folder
from tests.malformed.stored import sealed_manifest
from tests.training.conftest import write_store
from tests.training.test_resume import CASES, SMALL, Died, Dies

from slipstream.training import TrainConfig, train
from slipstream.training.checkpoint.folder import FOLDER
from slipstream.training.checkpoint.manifest import MANIFEST


@cache
def _folder() -> Path:
    """The data, and a run folder for each case; made once in a process, and removed at its end."""
    folder = lasting_folder()
    store = write_store(folder / "store", 1000)
    for place, settings in enumerate(CASES.values()):
        run = folder / f"run{place}"
        config = TrainConfig.model_validate({**SMALL, **settings, "out": run})
        try:
            train(config, store=store, listeners=[Dies(1, 0)])
        except Died:
            continue
        raise AssertionError(f"{settings} was not interrupted")
    return folder


def _newest(run: Path) -> Path:
    return max((run / FOLDER).iterdir()) / MANIFEST


def manifests() -> Sequence[bytes]:
    """What stands after the checksum in the manifest of each."""
    runs = sorted(_folder().glob("run*"))
    return [json.dumps(json.loads(_newest(run).read_bytes())["checkpoint"]).encode() for run in runs]


def resumed(folder: Path, data: bytes) -> list[str]:
    """Goes on with the training that a manifest is of, as far as it still says so."""
    try:
        name = Path(json.loads(data)["config"]["out"]).name
    except (ValueError, LookupError, TypeError):
        name = "run0"
    runs = {run.name: run for run in _folder().glob("run*")}  # a damaged name may be longer than a file's can be
    run = runs.get(name, runs["run0"])
    shutil.copytree(run, folder / "run")
    _newest(folder / "run").write_bytes(sealed_manifest(data))
    return ["train", str(_folder() / "store"), "--resume", str(folder / "run"), "--quiet"]
