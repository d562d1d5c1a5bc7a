"""A training that dies and goes on ends with the same bits as one that was never interrupted."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from tests.outcome import outcome

from slipstream.errors import ConfigError, Interrupted
from slipstream.training import CheckpointSaved, RunDone, RunStarted, TrainConfig, train
from slipstream.training.checkpoint import DamagedCheckpointWarning, folder
from slipstream.training.checkpoint.manifest import read_manifest
from slipstream.training.saver import check_same

SMALL = {
    "data": "unused",
    "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8], "first_order": True},
    "optimizer": {"name": "adagrad", "lr": 0.05, "embedding_lr": 0.1},
    "batch_size": 64,
    "log_every": 7,
    "threads": 1,
    "checkpoint": {"steps": 11, "minutes": None},
}
SLIPSTREAM = {"name": "slipstream", "budget": 0.5, "band": 0.2, "hot_bytes": 4000}
PSSE = {"name": "psse", "budget": 0.8, "warmup_steps": 10, "every": 10, "half_life": 20}
ADAM = {"name": "adam", "lr": 0.01, "on_skip": "catch_up"}
SATURATION = {"name": "saturation", "budget": 0.5, "warmup_steps": 8, "every": 8, "min_updates": 5}
IMPORTANCE = {"name": "importance", "budget": 0.5, "warmup_samples": 500, "bits": 10}
GUARD = {"name": "guard", "measure_every": 2, "first_copy": 128, "tolerance": 0.5}
PREQUENTIAL = {"mode": "prequential", "chunk_size": 500}
CASES = {
    "none": {},
    "prequential": {**PREQUENTIAL, "score_from": 700},
    "shuffled": {"shuffle": True, "epochs": 3},
    "random": {"policy": {"name": "random", "budget": 0.4}, "epochs": 2, "shuffle": True},
    "random rows": {"policy": {"name": "random", "level": "rows"}, **PREQUENTIAL},
    "psse": {"policy": {**PSSE, "protect_tail": 3}, "epochs": 2},
    "psse sketch": {"policy": {**PSSE, "scores": "sketch", "sketch_width": 64, "sketch_heavy": 64}, **PREQUENTIAL},
    "slipstream once": {"policy": {**SLIPSTREAM, "snapshot_start": 3, "snapshot_share": 0.2}, "epochs": 2},
    "slipstream periodic": {"policy": {**SLIPSTREAM, "mode": "periodic", "every": 9, "window": 4}, **PREQUENTIAL},
    "order": {"policy": {"name": "order", "order": "interleaved", "hot_bytes": 2000}},
    "adaptive order": {
        "policy": {"name": "order", "order": "adaptive", "hot_bytes": 2000, "test_samples": 100},
        "epochs": 2,
    },
    "saturation": {"policy": SATURATION, "epochs": 2},
    "row_importance": {"policy": {"name": "row_importance", "budget": 0.5}, "optimizer": ADAM},
    "subsampling": {"policy": {"name": "subsampling", "budget": 0.5, "warmup_steps": 8, "every": 8}, "optimizer": ADAM},
    "saturation adam": {"policy": SATURATION, "optimizer": ADAM},
    "importance": {"policy": IMPORTANCE, **PREQUENTIAL},
    "small batches": {"policy": IMPORTANCE, "batch_size": 16, "epochs": 2, "shuffle": True},
    "guard": {"policy": {**GUARD, "policy": "importance"}, "epochs": 2},
    "combine": {"policy": {"name": "combine", "inputs": IMPORTANCE, "rows": PSSE, "budget": 0.5}, **PREQUENTIAL},
    "bf16": {"bf16": True, "optimizer": {"name": "rowwise_adagrad", "dense_name": "adam", "clip": 1.0}},
    "momentum": {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}},
    "dense adamw": {"optimizer": {"name": "adamw", "lr": 0.01, "untouched": "dense", "weight_decay": 0.01}},
    "engine torch": {"engine": "torch", "optimizer": {"name": "adam", "lr": 0.01}},
    "engine xdl": {"engine": "xdl", "optimizer": {"name": "adam", "lr": 0.01}},
    "schedule": {"schedule": {"dense": "cosine", "embedding": "linear", "warmup_steps": 15}, "epochs": 2},
}


class Died(Exception):
    pass


class Dies:
    """Ends the training some steps after so many checkpoints, as a kill would."""

    def __init__(self, checkpoints: int, events: int) -> None:
        self.left, self.events = checkpoints, events

    def __call__(self, event: object) -> None:
        self.left -= isinstance(event, CheckpointSaved)
        if self.left <= 0:
            self.events -= 1
            if self.events < 0:
                raise Died


def configured(out: Path, settings: dict) -> TrainConfig:
    return TrainConfig.model_validate({**SMALL, **settings, "out": out})


def left_over(folder: Path) -> list[str]:
    return [entry.name for entry in folder.rglob("*") if "partial" in entry.name]


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_a_resumed_training_ends_with_the_same_bits(make_store, tmp_path, settings):
    store = make_store(1500)
    train(configured(tmp_path / "whole", settings), store=store)
    config = configured(tmp_path / "broken", settings)
    for dies in (Dies(1, 0), Dies(1, 1)):
        with pytest.raises(Died):
            train(config, store=store, listeners=[dies], resume=True)
    train(config, store=store, resume=True)
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "whole")
    assert [entry.name for entry in (tmp_path / "broken" / "checkpoints").iterdir()] == ["final"]
    assert left_over(tmp_path) == []


def die(config: TrainConfig, store: object, checkpoints: int = 1) -> None:
    with pytest.raises(Died):
        train(config, store=store, listeners=[Dies(checkpoints, 0)])


def test_another_number_of_threads_goes_on_to_the_same_bits(make_store, tmp_path):
    store = make_store(1500)
    train(configured(tmp_path / "whole", {}), store=store)
    config = configured(tmp_path / "broken", {})
    die(config, store)
    train(config.model_copy(update={"threads": 2}), store=store, resume=True)
    assert outcome(tmp_path / "broken")[:2] == outcome(tmp_path / "whole")[:2]


@pytest.mark.parametrize(("began", "asked", "used"), [(2, None, 2), (None, None, 3), (2, 1, 1), (None, 1, 1)])
def test_without_a_number_of_threads_it_takes_as_many_as_before(make_store, tmp_path, began, asked, used):
    """As many as were asked for, or as torch had, when it began; whatever torch has now."""
    store, config, before, seen = make_store(1500), configured(tmp_path / "run", {}), torch.get_num_threads(), set()
    try:
        torch.set_num_threads(3)
        die(config.model_copy(update={"threads": began}), store)
        torch.set_num_threads(1 if used > 1 else 2)
        count = lambda event: seen.add(torch.get_num_threads())  # noqa: E731
        train(config.model_copy(update={"threads": asked}), store=store, resume=True, listeners=[count])
    finally:
        torch.set_num_threads(before)
    assert seen == {used}


def test_incremental_checkpoints_go_on_to_the_same_bits(make_store, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "INCREMENTAL_FROM", 1)
    monkeypatch.setattr(folder, "INCREMENTAL_TO", 2.0)  # tables so small are touched all over
    store = make_store(1500)
    for name, settings in {"adam": {"optimizer": ADAM}, "saturation": {"policy": SATURATION}}.items():
        train(configured(tmp_path / f"whole {name}", settings), store=store)
        config = configured(tmp_path / name, settings)
        die(config, store, 2)
        newest = sorted((tmp_path / name / "checkpoints").iterdir())[-1]
        manifest, _ = read_manifest(newest)
        lines = manifest.tensors["listeners/JsonlMetrics/text"]  # however many there are, the manifest stays small
        assert manifest.kind == "rows" and lines.rows is None and lines.dtype == "uint8"
        assert '"event' not in (newest / "manifest.json").read_text().replace("\\", "")
        train(config, store=store, resume=True)
        assert outcome(tmp_path / name) == outcome(tmp_path / f"whole {name}")


@pytest.mark.skipif("KILLS" not in os.environ, reason="compiles three times, a minute: make faults runs it")
def test_compiled_training_goes_on_to_the_same_bits(make_store, tmp_path):
    settings = {"compile": True, "batch_size": 90}  # 1,350 samples are whole batches: one graph
    store = make_store(1500)
    torch._dynamo.reset()
    train(configured(tmp_path / "whole", settings), store=store)
    torch._dynamo.reset()
    config = configured(tmp_path / "broken", settings)
    die(config, store)
    torch._dynamo.reset()
    train(config, store=store, resume=True)
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer": {"name": "adagrad", "lr": 0.05, "embedding_lr": 0.2}}, "optimizer.embedding_lr was 0.1, now it"),
        ({"policy": PSSE}, "policy was"),
        ({"seed": 1}, "seed was 0, now it is 1"),
        ({"batch_size": 32}, "batch_size was 64"),
    ],
)
def test_a_changed_configuration_is_refused_by_the_name_of_the_setting(make_store, tmp_path, change, said):
    store = make_store(1500)
    die(configured(tmp_path / "run", {}), store)
    with pytest.raises(ConfigError, match=said):
        train(configured(tmp_path / "run", change), store=store, resume=True)


def test_importance_of_before_there_was_a_choice_of_correction_goes_on_with_weights(tmp_path):
    combined = {"name": "combine", "inputs": IMPORTANCE, "rows": PSSE}
    for policy in (IMPORTANCE, combined):
        saved = configured(tmp_path / "run", {"policy": policy}).model_dump(mode="json")
        importance = saved["policy"] if policy is IMPORTANCE else saved["policy"]["inputs"]
        del importance["correction"]
        with pytest.raises(ConfigError, match="correction was 'weights', now it is 'odds'"):
            check_same(saved, configured(tmp_path / "run", {"policy": policy}))
        weights = {**IMPORTANCE, "correction": "weights"}
        now = weights if policy is IMPORTANCE else {**combined, "inputs": weights}
        check_same(saved, configured(tmp_path / "run", {"policy": now}))


def test_other_data_is_refused_and_a_finished_training_is_returned(make_store, tmp_path):
    store = make_store(1500)
    config = configured(tmp_path / "run", {})
    die(config, store)
    with pytest.raises(ConfigError, match="not that of the training"):
        train(config, store=make_store(1500, name="other", seed=1), resume=True)
    result = train(config, store=store, resume=True)
    before = outcome(tmp_path / "run")
    assert train(config, store=store, resume=True) == result
    with pytest.raises(ConfigError, match="not that of the training"):
        train(config, store=make_store(1500, name="another", seed=2), resume=True)
    (tmp_path / "run" / "result.json").unlink()  # killed after the last checkpoint
    train(config, store=store, resume=True)
    assert outcome(tmp_path / "run") == before


def test_one_without_checkpoints_that_is_finished_is_returned(make_store, tmp_path):
    store, saved = make_store(1500), []
    config = configured(tmp_path / "run", {"checkpoint": {"steps": 11, "minutes": None, "final": False}})

    def die(event: object) -> None:
        if isinstance(event, RunDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, store=store, listeners=[die])  # the last checkpoints are still there, and the result is written
    assert (tmp_path / "run" / "result.json").exists()
    result = train(config, store=store, resume=True)
    assert not (tmp_path / "run" / "checkpoints").exists()
    before = outcome(tmp_path / "run")
    assert train(config, store=store, resume=True, listeners=[saved.append]) == result and not saved
    assert outcome(tmp_path / "run") == before
    with pytest.raises(ConfigError, match="seed"):
        train(config.model_copy(update={"seed": 7}), store=store, resume=True)


@pytest.mark.parametrize("again", [False, True])
def test_a_training_that_ended_while_its_result_was_written_is_not_begun_again(make_store, tmp_path, again):
    store, config = make_store(1500), configured(tmp_path / "run", {})

    def terminate(event: object) -> None:
        if isinstance(event, CheckpointSaved) and event.path.name == "final":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="saved; go on with --resume"):
        train(config, store=store, listeners=[terminate])
    assert [entry.name for entry in (tmp_path / "run/checkpoints").iterdir()] == ["final"]
    if again:
        with pytest.raises(ConfigError, match="not over"):
            train(config, store=store)
        with pytest.raises(Interrupted, match="saved; go on with --resume"):
            train(config, store=store, resume=True, listeners=[_terminate_at_start])
    written = (tmp_path / "run/checkpoints/final/manifest.json").stat().st_ino
    train(config, store=store, resume=True)
    assert (tmp_path / "run/checkpoints/final/manifest.json").stat().st_ino == written  # it was saved already
    train(configured(tmp_path / "whole", {}), store=store)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def _terminate_at_start(event: object) -> None:
    if isinstance(event, RunStarted):
        os.kill(os.getpid(), signal.SIGTERM)


def test_an_unfinished_training_is_not_overwritten(make_store, tmp_path):
    store, config = make_store(1500), configured(tmp_path / "run", {})
    die(config, store)
    with pytest.raises(ConfigError, match="--resume"):
        train(config, store=store)
    train(config, store=store, resume=True)
    train(config, store=store)  # a finished one is, as ever


def test_resuming_without_a_checkpoint_begins(make_store, tmp_path):
    store = make_store(1000)
    train(configured(tmp_path / "one", {}), store=store)
    train(configured(tmp_path / "two", {}), store=store, resume=True)
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")


def test_a_damaged_checkpoint_is_passed_over(make_store, tmp_path):
    store, config = make_store(1500), configured(tmp_path / "run", {})
    die(config, store, 2)
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    with (newest / "tensors-00000.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\xff")
    with pytest.warns(DamagedCheckpointWarning, match="instead"):
        train(config, store=store, resume=True)
    train(configured(tmp_path / "whole", {}), store=store)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
