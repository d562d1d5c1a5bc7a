"""A second training into the folder of a finished one: what is there before, meanwhile and after."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.outcome import outcome

from slipstream.errors import ConfigError
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
    assert [event.replaced for event in started] == [None, out / "replaced"]
    assert "replaced" in looks.seen and "result.json" not in looks.seen and "model.safetensors" not in looks.seen
    assert names(out) == whole, "nothing is left of the old run"
    assert outcome(out) == outcome(tmp_path / "alone") != before


def test_a_new_training_that_dies_leaves_the_old_run_beside_it(make_store, tmp_path):
    store, out = make_store(1500), tmp_path / "run"
    train(configured(out, OLD), store=store)
    before = outcome(out)
    for _ in range(2):  # the second one finds no finished run: what was put away stays
        with pytest.raises(KeyboardInterrupt):
            train(configured(out, NEW), store=store, listeners=[Dies(StepDone, out)])
        assert names(out) == {"replaced", "config.yaml", "metrics.jsonl"}
        assert not open_run(out).finished and open_run(out).policy == "random"
        assert outcome(out / "replaced") == before and open_run(out / "replaced").policy == "none"
    train(configured(out, NEW), store=store)
    assert not (out / "replaced").exists() and open_run(out).policy == "random"


def test_a_resumed_training_replaces_it_at_last(make_store, tmp_path):
    store, out = make_store(1500), tmp_path / "run"
    train(configured(out, OLD), store=store)
    settings = {**NEW, "checkpoint": {"steps": 3}}
    with pytest.raises(KeyboardInterrupt):
        train(configured(out, settings), store=store, listeners=[Dies(CheckpointSaved, out)])
    with pytest.raises(ConfigError, match="not over"):
        train(configured(out, OLD))  # refused before the data, which there is none of, is opened
    assert (out / "replaced" / "result.json").exists()
    train(configured(out, settings), store=store, resume=True)
    assert not (out / "replaced").exists() and open_run(out).policy == "random"


def test_a_mistake_changes_nothing(make_store, tmp_path):
    store, out = make_store(1500), tmp_path / "run"
    train(configured(out, OLD), store=store)
    before, whole = outcome(out), names(out)
    with pytest.raises(ConfigError):
        train(configured(out, {**NEW, "max_memory": "1kB"}), store=store)
    assert (outcome(out), names(out)) == (before, whole)


def test_a_start_that_was_killed_half_way_is_done_again_and_a_users_file_stays(tmp_path):
    for name in ("config.yaml", "metrics.jsonl", "result.json"):
        (tmp_path / name).write_text("new")
    old = tmp_path / "replaced"
    old.mkdir()
    for name, text in (("model.safetensors", "new"), ("result.json", "of the run before"), ("note.txt", "user's")):
        (old / name).write_text(text)
    with RunFolder(tmp_path, 2) as folder:
        assert folder.begin() == old and names(tmp_path) == {"replaced"}
        assert {path.read_text() for path in old.iterdir()} == {"new", "user's"}
        folder.complete()
        assert names(old) == {"note.txt"}
