"""A run folder in use: its name, its lock, what is removed in it, and checkpoints on another disk."""

from __future__ import annotations

import fcntl
import os
import shutil
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


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "model.safetensors", "result.json"])
def test_what_no_training_has_made_is_refused_and_stays(tmp_path, name, resume):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").write_text("user's")
    (tmp_path / name).write_text("batch_size: 64\n")
    with pytest.raises(ConfigError, match=rf"{tmp_path} holds {name}, .* no training of slipstream's; choose another"):
        train(configured(tmp_path, data=tmp_path / "none"), resume=resume)  # before any data is looked at
    assert names(tmp_path) == {"checkpoints", name} and (tmp_path / name).read_text() == "batch_size: 64\n"


@pytest.mark.parametrize("final", [False, True])
def test_a_users_files_beside_the_checkpoints_stay(make_store, tmp_path, final):
    store, run = make_store(600), tmp_path / "run"
    checkpoints = run / "checkpoints"
    (checkpoints / "step-5").mkdir(parents=True)
    (checkpoints / "best.pt").write_text("user's")
    for seed in (0, 1):  # the second replaces the first
        train(configured(run, seed=seed, checkpoint={"steps": 5, "minutes": None, "final": final}), store=store)
        assert names(checkpoints) == {"best.pt", "step-5", *(["final"] if final else [])}
    (checkpoints / "best.pt").unlink()
    (checkpoints / "step-5").rmdir()
    partial_name(checkpoints / "final").mkdir()
    RunFolder(run, 2).checkpoints.clear()
    assert not checkpoints.exists(), "nothing of the user's is in it any more"


def test_a_training_that_was_killed_at_any_moment_is_known_for_one(make_store, tmp_path):
    """By what it leaves first; by what is left where somebody has taken the metrics away."""
    store, run = make_store(600), tmp_path / "run"
    train(configured(run), store=store)
    whole = names(run)
    for kept in ({"metrics.jsonl"}, {"metrics.jsonl", "config.yaml"}, {"result.json"}, {"checkpoints", "config.yaml"}):
        some = tmp_path / "-".join(sorted(kept))
        shutil.copytree(run, some, ignore=lambda folder, all_, kept=kept: whole - kept if folder == str(run) else ())
        with RunFolder(some, 2) as folder:
            folder.check_ours()
            for text in ("", '{"event": "st'):
                if "metrics.jsonl" in kept:
                    (some / "metrics.jsonl").write_text(text)
                    folder.check_ours()
    (tmp_path / "begun" / ".replaced").mkdir(parents=True)
    for name in ("config.yaml", ".replaced/put_away.txt"):
        (tmp_path / "begun" / name).touch()
    RunFolder(tmp_path / "begun", 2).check_ours()


def test_a_training_writes_nothing_outside_its_folder(make_store, tmp_path):
    """Links that are followed where a user names a file are not in a run folder, which may be somebody else's."""
    store, run, outside = make_store(600), tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.write_text("user's")
    (run / "metrics.jsonl").touch()  # of a training that was killed
    for name in ("config.yaml", "model.safetensors"):
        (run / name).symlink_to(outside)
    os.mkfifo(run / "result.json")
    train(configured(run), store=store)
    assert outside.read_text() == "user's" and outcome(run)
    assert not any((run / name).is_symlink() for name in names(run))


def test_the_page_of_a_run_goes_with_it(make_store, tmp_path):
    store, run = make_store(600), tmp_path / "run"
    run.mkdir()
    (run / "report.html").write_text("user's")
    train(configured(run), store=store)
    assert (run / "report.html").exists(), "it is of no run that is replaced"

    def look(event: object) -> None:
        if isinstance(event, CheckpointSaved):
            assert (run / ".replaced" / "report.html").exists() and not (run / "report.html").exists()

    train(configured(run, seed=1), store=store, listeners=[look])
    assert names(run) == {"checkpoints", "config.yaml", "metrics.jsonl", "model.safetensors", "result.json"}
