"""A finished training goes on with the next slice, whose vocabulary is larger."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from slipstream.data.encoder import Encoder
from slipstream.data.prepare import prepare
from slipstream.data.store import Store
from slipstream.errors import CheckpointError, ConfigError, DataError
from slipstream.training import TrainConfig, Trainer, evaluate, train
from slipstream.training.checkpoint.folder import CheckpointFolder
from slipstream.training.continuing import continue_from, earlier_data

SMALL = {
    "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
    "optimizer": {"name": "adam", "lr": 0.01, "on_skip": "catch_up"},
    "mode": "prequential",
    "chunk_size": 300,
    "batch_size": 64,
    "threads": 1,
}
POLICIES = {
    "none": "none",
    "psse": {"name": "psse", "budget": 0.8, "warmup_steps": 5, "every": 5, "protect_tail": 2},
    "sketch": {"name": "psse", "warmup_steps": 5, "scores": "sketch", "sketch_width": 64, "sketch_heavy": 64},
    "saturation": {"name": "saturation", "warmup_steps": 4, "every": 4, "min_updates": 5, "budget": 0.5},
    "row_importance": {"name": "row_importance", "budget": 0.5},
    "subsampling": {"name": "subsampling", "warmup_steps": 4, "every": 4, "budget": 0.5},
    "periodic": {"name": "slipstream", "budget": 0.5, "band": 0.2, "mode": "periodic", "every": 6, "window": 2},
    "periodic_tail": {"name": "slipstream", "mode": "periodic", "every": 6, "window": 2, "protect_tail": 40},
    "guard": {"name": "guard", "policy": "importance", "measure_every": 2, "first_copy": 128},
    "combine": {"name": "combine", "inputs": "random", "rows": {"name": "psse", "warmup_steps": 5, "every": 5}},
}


def write_slice(folder: Path, day: int, rows: int = 900) -> Path:
    """Clicks of a day: half of its items were not there the day before."""
    draw = np.random.default_rng(day)
    users, items = draw.integers(0, 30, rows), draw.integers(10 * day, 10 * day + 20, rows)
    lines = (
        f"{(u + i) % 2},{86_400 * day + t},u{u},i{i},{u / 7:.3f}"
        for t, (u, i) in enumerate(zip(users, items, strict=True))
    )
    file = folder / f"day{day}.csv"
    file.write_text("\n".join(["label,time,user,item,price", *lines, ""]), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    folder = tmp_path_factory.mktemp("days")
    stores: list[Store] = []
    for day in range(3):
        extend = stores[-1].path if stores else None
        stores.append(prepare(write_slice(folder, day), folder / f"store{day}", extend=extend))
    return stores


def test_known_values_keep_their_ids_and_new_ones_come_after(days):
    rows = [next(feature.num_rows for feature in store.features if feature.name == "item") for store in days]
    assert rows == [21, 31, 41]
    first, last = (Encoder.load(store.path) for store in (days[0], days[2]))
    assert first.spec.lineage == () and len(last.spec.lineage) == 2
    assert last.spec.dense == first.spec.dense, "dense values are transformed as the model learned them"
    import polars as pl

    values = [pl.read_parquet(store.path / "vocabulary" / "item.parquet") for store in days]
    assert values[2]["value"][:20].to_list() == values[0]["value"].to_list()
    assert values[2]["value"].n_unique() == 40 and int(values[2]["count"].sum()) == 2700


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_what_was_learned_is_carried_on_and_tables_grow(days, tmp_path, policy):
    def config(out: str, **settings: object) -> TrainConfig:
        return TrainConfig.model_validate({"data": "x", **SMALL, "policy": policy, "out": tmp_path / out, **settings})

    train(config("run0"), store=days[0])
    for day in (1, 2):
        train(config(f"run{day}", continue_from=tmp_path / f"run{day - 1}"), store=days[day])
    # A rate that changes nothing to speak of: weights that were known are those of the run before.
    still = {"name": "adam", "lr": 1e-30, "on_skip": "catch_up"}
    train(config("still", continue_from=tmp_path / "run0", optimizer=still), store=days[1])
    before, after = (load_file(tmp_path / run / "model.safetensors") for run in ("run0", "still"))
    for name, value in before.items():
        assert torch.equal(after[name][: len(value)], value), name
    assert len(after["embeddings.tables.item.weight"]) == 31
    assert evaluate(tmp_path / "run0", days[2]).scores.samples == 900, "values it does not know are out of vocabulary"


def test_what_cannot_be_continued_is_refused(days, tmp_path):
    base = {"data": "x", **SMALL}
    train(TrainConfig.model_validate({**base, "out": tmp_path / "a", "checkpoint": {"final": False}}), store=days[0])
    again = {**base, "continue_from": tmp_path / "a", "out": tmp_path / "b"}
    with pytest.raises(CheckpointError, match="no checkpoint of a finished"):
        train(TrainConfig.model_validate(again), store=days[1])
    train(TrainConfig.model_validate({**base, "out": tmp_path / "a"}), store=days[0])
    with pytest.raises(ConfigError, match=r"policy\.name was 'none'"):
        train(TrainConfig.model_validate({**again, "policy": "random"}), store=days[1])
    unrelated = prepare(write_slice(tmp_path, 1), tmp_path / "unrelated")
    with pytest.raises(DataError, match="--extend-vocabulary"):
        train(TrainConfig.model_validate(again), store=unrelated)


GROWN = {21: 31}
"""Rows of the items' table on the first day, and on the second."""


def same(ours: object, saved: object, path: str = "", *, grown: bool = False) -> None:
    """Equal trees; a table that has grown begins with what it held."""
    if isinstance(saved, dict):
        assert isinstance(ours, dict) and ours.keys() == saved.keys(), path
        for name, value in saved.items():
            if name == "epoch" and "gates" in saved:  # psse's clock is not yet of this training
                assert ours[name] == -1
                continue
            same(ours[name], value, f"{path}/{name}", grown=grown)
    elif isinstance(saved, list | tuple):
        assert isinstance(ours, list | tuple) and len(ours) == len(saved), path
        for i, value in enumerate(saved):
            same(ours[i], value, f"{path}/{i}", grown=grown)
    elif isinstance(saved, torch.Tensor):
        assert isinstance(ours, torch.Tensor), path
        assert torch.equal(ours[: len(saved)] if saved.dim() else ours, saved), path
    elif grown and "/num_rows" in path:
        assert ours in (saved, GROWN.get(saved)), path
    else:
        assert ours == saved, path


IMPORTANCE = {"name": "importance", "warmup_samples": 200, "bits": 10}
OPTIMIZERS = [
    {"name": "adam", "lr": 0.01, "on_skip": "catch_up"},
    {"name": "rowwise_adagrad", "dense_name": "adam", "lr": 0.01},
    {"name": "sgd", "lr": 0.01, "momentum": 0.9},
]


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("policy", [*POLICIES.values(), IMPORTANCE, "random"], ids=[*POLICIES, "importance", "random"])
def test_before_the_first_new_sample_all_is_as_it_was_saved(days, tmp_path, policy, grown):
    check_carried(days, tmp_path, policy, OPTIMIZERS[0], grown=grown)


@pytest.mark.parametrize("optimizer", OPTIMIZERS[1:], ids=lambda optimizer: optimizer["name"])
def test_state_of_other_optimizers_is_carried_on(days, tmp_path, optimizer):
    check_carried(days, tmp_path, "none", optimizer, grown=True)


def check_carried(days: list[Store], tmp_path: Path, policy: object, optimizer: object, *, grown: bool) -> None:
    run = tmp_path / "run"
    tree = {"data": "x", **SMALL, "policy": policy, "optimizer": optimizer}
    train(TrainConfig.model_validate({**tree, "out": run}), store=days[0])
    loaded = CheckpointFolder(run).newest()
    assert loaded is not None
    saved = loaded.state["trainer"]
    trainer = Trainer(TrainConfig.model_validate({**tree, "seed": 5}).resolved(), days[1 if grown else 0])
    continue_from(trainer, run)
    ours = trainer.state_dict()
    same(ours["model"], saved["model"])
    for one, other in zip(ours["optimizers"], saved["optimizers"], strict=True):
        same(one["state"], other["state"])
    same(ours["tables"], saved["tables"])
    told, before = ours["skipper"]["policy_state"], saved["skipper"]["policy_state"]
    if ours["skipper"]["policy"] == "guard":
        told, before = told["inner"], before["inner"]  # its evidence begins anew
    same(told, before, grown=grown)
    assert ours["skipper"]["epoch"] == saved["skipper"]["epoch"]
    assert ours["skipper"]["earlier"] == [saved["skipper"]["steps"], saved["skipper"]["samples"]]
    assert (ours["samples"], ours["steps"], ours["skipper"]["inputs_seen"]) == (0, 0, 0)


def test_a_scout_that_has_seen_the_labels_is_corrected_for_by_weights(days, tmp_path):
    def corrected(out: str, day: int, before: str | None = None) -> str:
        config = {"data": "x", **SMALL, "policy": IMPORTANCE, "out": tmp_path / out}
        config["continue_from"] = None if before is None else tmp_path / before
        return train(TrainConfig.model_validate(config), store=days[day]).policy_report["corrected_by"]

    assert corrected("monday", 0) == "odds"
    assert corrected("again", 0, "monday") == "weights", "it has learned from each of these inputs"
    assert corrected("tuesday", 1, "monday") == "odds", "it has seen none of these"
    assert corrected("back", 1, "again") == "odds"
    assert corrected("wednesday", 2, "tuesday") == "odds"
    extended = corrected("late", 2, "wednesday")
    assert extended == "weights", "the run itself"
    newest = CheckpointFolder(tmp_path / "wednesday").newest()
    assert newest is not None
    everything = [store.fingerprint for store in reversed(days)]
    assert earlier_data(tmp_path / "wednesday", newest.manifest) == everything
    # An older checkpoint does not say: its configuration names the run before it, and that one's the one before.
    older = newest.manifest.model_copy(update={"data": {"fingerprint": days[2].fingerprint}})
    assert earlier_data(tmp_path / "wednesday", older) == everything
    shutil.rmtree(tmp_path / "tuesday")
    assert earlier_data(tmp_path / "wednesday", older) == everything[:1], "nobody knows any more"
    assert earlier_data(tmp_path / "wednesday", newest.manifest) == everything


def test_a_training_on_seen_data_is_resumed_as_such(days, tmp_path):
    tree = {"data": "x", **SMALL, "policy": IMPORTANCE}
    train(TrainConfig.model_validate({**tree, "out": tmp_path / "run"}), store=days[0])
    first, other = (Trainer(TrainConfig.model_validate(tree).resolved(), days[0]) for _ in range(2))
    continue_from(first, tmp_path / "run")
    assert not first.skipper.corrects_by_offset and other.skipper.corrects_by_offset
    other.skipper.load_state_dict(first.skipper.state_dict())
    assert not other.skipper.corrects_by_offset


def test_evaluation_counts_what_a_run_before_was_trained_on(days, tmp_path):
    first = TrainConfig.model_validate({"data": "x", **SMALL, "out": tmp_path / "1"})
    train(first, store=days[0])
    fewer = {"out": tmp_path / "2", "continue_from": tmp_path / "1", "max_samples": 300}
    train(first.model_copy(update=fewer), store=days[0])
    once = evaluate(tmp_path / "1", days[0]).trained_on
    assert once > 300 and evaluate(tmp_path / "2", days[0]).trained_on == once
    assert evaluate(tmp_path / "2", days[0], start=once - 10).trained_on == 10
    (tmp_path / "1" / "config.yaml").write_text("{", encoding="utf-8")
    assert 0 < evaluate(tmp_path / "2", days[0]).trained_on <= 300  # damage there is no matter of this run's
    shutil.rmtree(tmp_path / "1")
    assert 0 < evaluate(tmp_path / "2", days[0]).trained_on <= 300  # of the rest nobody knows any more
