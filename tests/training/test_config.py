from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from slipstream.data import Schema
from slipstream.data.prepare import prepare
from slipstream.errors import ConfigError, DataError
from slipstream.models import MODELS
from slipstream.policies.configs import POLICIES, build_policy
from slipstream.training import ScheduleConfig, TrainConfig, load_config, save_config, train
from slipstream.training.schedule import factor


@settings(max_examples=40, deadline=None)
@given(
    model=st.sampled_from(MODELS),
    policy=st.sampled_from(POLICIES),
    optimizer=st.sampled_from(["sgd", "adagrad", "rowwise_adagrad", "adam", "adamw"]),
    mode=st.sampled_from(["holdout", "prequential"]),
    lr=st.floats(1e-6, 1.0),
    samples=st.none() | st.integers(2, 10**12),
)
def test_yaml_round_trip(tmp_path_factory, model, policy, optimizer, mode, lr, samples):
    tree = {
        "data": "some/where",
        "model": {"name": model, "embedding_dim": 24},
        "policy": policy,
        "optimizer": {"name": optimizer, "lr": lr, "dense_name": "adam"},
        "mode": "holdout" if build_policy(policy).plans_order else mode,
        "max_samples": samples,
        "out": "runs/ä b",
    }
    config = TrainConfig.model_validate(tree).resolved()
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    save_config(config, path)
    assert load_config(path) == config


def test_sections_may_be_written_as_names():
    config = TrainConfig(data="x", model="deepfm", policy="psse")
    assert (config.model.name, config.policy.name) == ("deepfm", "psse")


def test_the_dense_rate_decays_where_the_training_has_an_end():
    assert TrainConfig(data="x").resolved().schedule.dense == "linear"
    assert TrainConfig(data="x", mode="prequential").resolved().schedule.dense == "constant"
    assert TrainConfig(data="x", schedule=ScheduleConfig(dense="cosine")).resolved().schedule.dense == "cosine"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "prequential", "epochs": 2}, "one pass"),
        ({"score_from": 5}, "belong to mode prequential"),
        ({"mode": "prequential", "score_from": 5, "score_to": 5}, "must be above"),
        ({"engine": "torch", "optimizer": {"name": "rowwise_adagrad"}}, "no rowwise_adagrad"),
        ({"engine": "torch", "optimizer": {"clip": 1.0}}, "cannot clip"),
        ({"engine": "torch", "optimizer": {"name": "sgd", "momentum": 0.9}}, "no momentum"),
        ({"engine": "torch", "compile": True}, "cannot compile"),
        ({"model": {"name": "mf", "objective": "bpr"}, "compile": True}, "nothing to compile"),
        ({"engine": "torch", "optimizer": {"name": "adam", "weight_decay": 0.1}}, "no weight_decay"),
        ({"policy": "psse", "optimizer": {"untouched": "dense"}}, "untouched=lazy"),
        ({"policy": {"name": "random", "level": "rows"}, "optimizer": {"untouched": "dense"}}, "untouched=lazy"),
        ({"optimizer": {"lr": 0}}, "greater than 0"),
        ({"model": "resnet"}, "does not match any of the expected tags"),
        ({"bath_size": 5}, "Extra inputs"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate({"data": "x", **settings})


def test_a_broken_file_is_one_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("data: x\nbatch_size: many\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.yaml: batch_size"):
        load_config(path)
    path.write_text("a: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(path)


def test_decay_curves():
    assert [factor("linear", done, 0.1) for done in (0, 0.5, 1, 2)] == pytest.approx([1, 0.55, 0.1, 0.1])
    assert [factor("cosine", done, 0) for done in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert factor("constant", 0.9, 0) == 1


@pytest.mark.parametrize("name", ["out", "continue_from"])
def test_an_empty_path_is_not_the_current_folder(name: str) -> None:
    with pytest.raises(ValueError, match=r"is empty: write \. for the current folder"):
        TrainConfig.model_validate({"data": "d", name: ""})
    assert TrainConfig.model_validate({"data": "d", "out": "."}).out == Path()


@pytest.mark.parametrize("wrong", [-1.0, 3.0])
def test_labels_beyond_0_and_1_are_refused_before_anything_is_trained(wrong: float, tmp_path: Path) -> None:
    rows = [f"{wrong if i == 150 else i % 2},u{i % 7}" for i in range(200)]
    (tmp_path / "a.csv").write_text("\n".join(["label,u", *rows]) + "\n")
    store = prepare(tmp_path / "a.csv", tmp_path / "a", format="csv", schema=Schema(label="label", categorical=("u",)))
    said = rf"sample 150 has the label {wrong:g}, which is not from 0 to 1; prepare it with a --label-threshold"
    with pytest.raises(DataError, match=said):
        train(TrainConfig.model_validate({"data": "x", "model": "deepfm", "out": tmp_path / "run"}), store=store)
