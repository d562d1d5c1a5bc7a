"""A second training into the folder of a finished one: what is there before, meanwhile and after."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.outcome import outcome

from slipstream.errors import ConfigError, OutputError
from slipstream.report.runs import open_run
from slipstream.training import CheckpointSaved, RunStarted, StepDone, TrainConfig, train
from slipstream.training.events import Event
from slipstream.training.run_folder import RunFolder

OLD = {
    "data": "unused",
    "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
    "optimizer": {"name": "adagrad", "lr": 0.05},
    "batch_size": 64,
    "log_every": 4,
}
NEW = {**OLD, "seed": 1, "policy": {"name": "random", "budget": 0.5}}


def configured(out: Path, settings: dict) -> TrainConfig:
    return TrainConfig.model_validate({**settings, "out": out})


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


class Dies:
    """Ends the training at the first event of a kind, and notes what lay in the folder."""

    def __init__(self, kind: type, folder: Path, *, dies: bool = True) -> None:
        self.kind, self.folder, self.dies = kind, folder, dies
        self.seen: set[str] = set()

    def __call__(self, event: Event) -> None:
        if isinstance(event, self.kind):
            self.seen = names(self.folder)
            if self.dies:
                raise KeyboardInterrupt


def test_a_finished_run_is_there_until_the_new_one_is_complete(make_store, tmp_path):
    store, out = make_store(1500), tmp_path / "run"
    started: list[RunStarted] = []
    told = lambda event: started.append(event) if isinstance(event, RunStarted) else None  # noqa: E731
    train(configured(out, OLD), store=store, listeners=[told])
    train(configured(tmp_path / "alone", NEW), store=store)
    before, whole = outcome(out), names(out)
    looks = Dies(StepDone, out, dies=False)
    train(configured(out, NEW), store=store, listeners=[told, looks])
    assert [event.replaced for event in started] == [None, out / ".replaced"]
    assert ".replaced" in looks.seen and "result.json" not in looks.seen and "model.safetensors" not in looks.seen
    assert names(out) == whole, "nothing is left of the old run"
    assert outcome(out) == outcome(tmp_path / "alone") != before


def test_a_new_training_that_dies_leaves_the_old_run_beside_it(make_store, tmp_path):
    store, out = make_store(1500), tmp_path / "run"
    train(configured(out, OLD), store=store)
    before = outcome(out)
    started: list[Path | None] = []
    told = lambda event: started.append(event.replaced) if isinstance(event, RunStarted) else None  # noqa: E731
    for _ in range(2):  # the second one finds no finished run: what was put away stays
        with pytest.raises(KeyboardInterrupt):
            train(configured(out, NEW), store=store, listeners=[told, Dies(StepDone, out)])
        assert started[-1] == out / ".replaced"
        assert names(out) == {".replaced", "config.yaml", "metrics.jsonl"}
        assert not open_run(out).finished and open_run(out).policy == "random"
        assert outcome(out / ".replaced") == before and open_run(out / ".replaced").policy == "none"
    train(configured(out, NEW), store=store)
    assert not (out / ".replaced").exists() and open_run(out).policy == "random"


def test_a_resumed_training_replaces_it_at_last(make_store, tmp_path):
    store, out = make_store(1500), tmp_path / "run"
    train(configured(out, OLD), store=store)
    settings = {**NEW, "checkpoint": {"steps": 3}}
    with pytest.raises(KeyboardInterrupt):
        train(configured(out, settings), store=store, listeners=[Dies(CheckpointSaved, out)])
    with pytest.raises(ConfigError, match="not over"):
        train(configured(out, OLD))  # refused before the data, which there is none of, is opened
    assert (out / ".replaced" / "result.json").exists()
    train(configured(out, settings), store=store, resume=True)
    assert not (out / ".replaced").exists() and open_run(out).policy == "random"


def test_a_mistake_changes_nothing(make_store, tmp_path):
    store, out = make_store(1500), tmp_path / "run"
    train(configured(out, OLD), store=store)
    before, whole = outcome(out), names(out)
    with pytest.raises(ConfigError):
        train(configured(out, {**NEW, "max_memory": "1kB"}), store=store)
    assert (outcome(out), names(out)) == (before, whole)


def test_a_users_file_stays(tmp_path):
    old = tmp_path / ".replaced"
    for text in ("new", "newer"):
        for name in ("config.yaml", "metrics.jsonl", "result.json"):
            (tmp_path / name).write_text(text)
        with RunFolder(tmp_path, 2) as folder:
            folder.begin()
            assert folder.replaced == old and names(tmp_path) == {".replaced"}
            assert (old / "result.json").read_text() == text
            (old / "note.txt").write_text("user's")
            folder.complete()
            assert names(old) == {"note.txt"} and folder.replaced is None


def test_what_no_training_has_put_away_stays(make_store, tmp_path):
    store, out = make_store(1500), tmp_path / "run"
    for name in ("replaced", ".replaced"):  # a run folder in the run folder, whatever its name
        train(configured(out / name, OLD), store=store)
    before = names(out / ".replaced")
    train(configured(out, OLD), store=store)
    assert names(out / "replaced") == names(out / ".replaced") == before
    with pytest.raises(ConfigError, match="holds a run that no training has put there"):
        train(configured(out, NEW), store=store)
    assert open_run(out).policy == "none" and (out / "checkpoints" / "final").is_dir()
    assert names(out / ".replaced") == before


def test_a_file_in_the_way_is_said_before_anything_is_moved(make_store, tmp_path):
    store, out = make_store(1500), tmp_path / "run"
    out.mkdir()
    (out / ".replaced").write_text("user's")
    train(configured(out, OLD), store=store)
    before = outcome(out), names(out)
    with pytest.raises(OutputError, match="replaced"):
        train(configured(out, NEW), store=store)
    assert (outcome(out), names(out)) == before and (out / ".replaced").read_text() == "user's"


class Killed(BaseException):
    """The process is gone."""


@contextlib.contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[None]:
    """From the call of this number on, nothing changes a file or folder any more."""
    calls = iter(range(1_000))

    def unless_killed(does: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(calls) >= number:
                raise Killed
            return does(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for name in ("replace", "rename", "unlink", "mkdir", "rmdir"):
            patched.setattr(os, name, unless_killed(getattr(os, name)))
        yield


def test_a_start_or_an_end_that_is_killed_at_any_moment_is_done_again(make_store, tmp_path, monkeypatch):
    store, old = make_store(600), tmp_path / "old"
    train(configured(old, OLD), store=store)
    train(configured(tmp_path / "alone", NEW), store=store)
    whole, expected = outcome(old), outcome(tmp_path / "alone")
    for number in count():
        out = tmp_path / str(number)
        shutil.copytree(old, out)
        with RunFolder(out, 2) as folder:
            try:
                with killed_at(monkeypatch, number):
                    folder.begin()
            except Killed:
                pass
            else:
                break
        if (out / "checkpoints").exists():
            assert outcome(out) == whole and names(old) <= names(out)
            continue
        for name in ("result.json", "config.yaml", "metrics.jsonl", "model.safetensors"):
            assert (out / name).exists() != (out / ".replaced" / name).exists()
        # As a launcher begins it again: what it finds must not be taken for its own.
        train(configured(out, NEW), store=store, resume=True)
        assert outcome(out) == expected and names(out) == names(old)
    assert number > 8
    for number in count():
        with RunFolder(out, 2) as folder:
            folder.begin()
            shutil.copytree(tmp_path / "alone", out, dirs_exist_ok=True)
            try:
                with killed_at(monkeypatch, number):
                    folder.complete()
            except Killed:
                pass
            else:
                break
        train(configured(out, NEW), store=store, resume=True)
        assert outcome(out) == expected and names(out) == names(old)
    assert number > 4
