"""A run folder in use: its name, its lock, what is removed in it, and checkpoints on another disk."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from tests.outcome import outcome

from slipstream.data.atomic import partial_name
from slipstream.errors import ConfigError
from slipstream.training import CheckpointSaved, TrainConfig, train
from slipstream.training.run_folder import RunFolder

SETTINGS = {
    "data": "unused",
    "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
    "optimizer": {"name": "adagrad", "lr": 0.05},
    "batch_size": 64,
    "threads": 1,
    "checkpoint": {"steps": 5, "minutes": None},
}
NO_TEXT = os.fsdecode(b"run\xff")


def configured(out: Path, **settings: object) -> TrainConfig:
    return TrainConfig.model_validate({**SETTINGS, **settings, "out": out})


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_folder_whose_name_is_no_text_is_refused_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match=r"^out .*run\\udcff: its name is not UTF-8; rename it"):
        train(configured(tmp_path / NO_TEXT, data=tmp_path / "none"))  # before any data is looked at
    assert names(tmp_path) == set()


@pytest.mark.parametrize("setting", ["data", "cache", "columns", "continue_from"])
def test_a_path_whose_name_is_no_text_is_refused_before_the_first_step(make_store, tmp_path, setting):
    config = configured(tmp_path / "run", **{setting: tmp_path / NO_TEXT})
    with pytest.raises(ConfigError, match=rf"{setting} .*run\\udcff: its name is not UTF-8"):
        train(config, store=make_store(600))
    assert not (tmp_path / "run").exists()


def test_a_training_without_a_folder_may_read_from_any_path(make_store, tmp_path):
    make_store(600, name=NO_TEXT)
    assert train(TrainConfig.model_validate({**SETTINGS, "data": tmp_path / NO_TEXT})).steps


@pytest.mark.parametrize("again", [False, True])
def test_a_lock_on_a_folder_that_is_gone_is_none(tmp_path, monkeypatch, again):
    """One training ends, and removes its empty folder, after another one has opened it and before that locks it."""
    run, flock, left = tmp_path / "run", fcntl.flock, [True]

    def late(descriptor: int, how: int) -> None:
        if left.pop() if left else False:
            run.rmdir()
            if again:
                run.mkdir()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with RunFolder(run, 2):
        assert not left and run.is_dir()
        with pytest.raises(ConfigError, match="another training is at work"), RunFolder(run, 2):
            pass
    assert not run.exists()


def test_only_what_a_training_has_left_is_removed(tmp_path):
    """Others may be at work in the folder: a preparation into run/data writes beside that."""
    own = [
        partial_name(tmp_path / name) for name in ("model.safetensors", "config.yaml", "metrics.jsonl", "result.json")
    ]
    own += [partial_name(tmp_path / "checkpoints/step-000000000004"), partial_name(tmp_path / "checkpoints/final")]
    others = [partial_name(tmp_path / name) for name in ("data", "page.html", "final", "checkpoints/notes")]
    for path in own + others:
        path.mkdir(parents=True)
    own[0].rmdir()
    own[0].write_text("half a model")
    own.append(partial_name(tmp_path / "checkpoints"))
    (own[-1] / "step-000000000002").mkdir(parents=True)
    with RunFolder(tmp_path, 2):
        assert not any(path.exists() for path in own) and all(path.is_dir() for path in others)


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A run folder whose checkpoints are on another disk, in a folder that must stay: a disk's own cannot be moved."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "note.txt").write_text("user's")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "disk")
    return tmp_path / "run"


def test_a_run_with_checkpoints_on_another_disk_is_resumed_and_replaced(make_store, tmp_path, linked):
    store, disk = make_store(1500), tmp_path / "disk"

    def die(event: object) -> None:
        if isinstance(event, CheckpointSaved):
            raise KeyboardInterrupt

    for seed in (0, 1):  # the second replaces the first
        for resume in (False, True):
            (disk / partial_name(disk / "final").name).mkdir()  # of one that was killed
            try:
                train(configured(linked, seed=seed), store=store, resume=resume, listeners=[] if resume else [die])
            except KeyboardInterrupt:
                assert names(disk) == {"note.txt", "step-000000000005"}
            assert (linked / "checkpoints").is_symlink()
        train(configured(tmp_path / f"alone{seed}", seed=seed), store=store)
        assert outcome(linked) == outcome(tmp_path / f"alone{seed}")
        assert names(disk) == {"note.txt", "final"}


def test_while_a_link_is_cleared_the_final_checkpoint_goes_last(linked, monkeypatch):
    for name in ("final", "step-000000000004"):
        (linked / "checkpoints" / name).mkdir()
    rename = Path.rename

    def killed(path: Path, to: Path) -> Path:
        if path.name == "final":
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", killed)
    with RunFolder(linked, 2) as folder, pytest.raises(KeyboardInterrupt):
        folder.checkpoints.clear()
    assert folder.checkpoints.names() == ["final"]


def test_a_link_that_leads_nowhere_is_refused(tmp_path, linked):
    """A disk that is not there: --resume would begin anew."""
    (tmp_path / "disk").rename(tmp_path / "away")
    with pytest.raises(ConfigError, match="checkpoints is a link that leads to no folder; make"), RunFolder(linked, 2):
        pass
    (tmp_path / "away").rename(tmp_path / "disk")
    with RunFolder(linked, 2):
        pass
