from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from slipstream import documents
from slipstream.cli.settings import put, resolve, validate
from slipstream.documents import read_settings
from slipstream.errors import ConfigError
from slipstream.models import DLRMConfig, MatrixFactorizationConfig
from slipstream.training import TrainConfig


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Literal["none", "random", "psse"] = "none"
    budget: float | None = None


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")
    policy: Part = Part()
    lr: float = 0.1
    sizes: list[int] = [1]


def test_assignments_win_over_flags_and_flags_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("lr: 0.2\nsizes: [2]\npolicy: {name: random, budget: 0.5}\n", encoding="utf-8")
    flags = {"lr": 0.3, "policy.budget": None}
    config = resolve(Whole, file, flags, ["lr=0.4", "sizes=[3, 4]"])
    assert config == Whole(lr=0.4, sizes=[3, 4], policy=Part(name="random", budget=0.5))


def test_another_policy_drops_the_settings_of_the_one_before() -> None:
    tree = {"policy": {"name": "random", "budget": 0.5}}
    put(tree, "policy.name", "random")
    assert tree == {"policy": {"name": "random", "budget": 0.5}}
    put(tree, "policy.name", "psse")
    assert tree == {"policy": {"name": "psse"}}


def test_a_section_may_be_its_name_alone() -> None:
    tree = {"policy": "random"}
    put(tree, "policy.name", "random")
    put(tree, "policy.budget", 0.5)
    assert tree == {"policy": {"name": "random", "budget": 0.5}}


def test_a_plain_value_has_no_settings() -> None:
    with pytest.raises(ConfigError, match=r"lr\.x: lr has no settings"):
        put({"lr": 0.1}, "lr.x", 1)


@pytest.mark.parametrize("text", ["lr", "=1", "lr=[", "lr=fast", "unheard_of=1", "policy.name=all"])
def test_a_wrong_assignment_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=text.partition("=")[0] or "="):
        resolve(Whole, None, {}, [text])


@pytest.mark.parametrize("text", ["- 1\n", "lr: [", "\x00"])
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        read_settings(file)
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_settings(tmp_path / "none.yaml")


def test_yaml_tags_construct_nothing(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("lr: !!python/object/apply:os.getcwd []\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not allowed"):
        read_settings(file)


def test_an_empty_file_means_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("", encoding="utf-8")
    assert resolve(Whole, file, {}) == Whole()


def test_parts_of_a_policy_are_chosen_by_name_too() -> None:
    tree: dict[str, object] = {"policy": "combine"}
    put(tree, "policy.inputs.name", "random")
    put(tree, "policy.inputs.budget", 0.5)
    put(tree, "policy.inputs.name", "random")
    assert tree == {"policy": {"name": "combine", "inputs": {"name": "random", "budget": 0.5}}}
    put(tree, "policy.inputs.name", "importance")
    put(tree, "policy.rows", {"name": "psse"})
    assert tree == {"policy": {"name": "combine", "inputs": {"name": "importance"}, "rows": {"name": "psse"}}}


def test_anchors_may_be_used_as_long_as_they_stand_for_little(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("lr: &rate 0.5\nsizes: &s [1, 2]\nmore: {<<: {a: *rate}, b: *s}\n", encoding="utf-8")
    assert read_settings(file) == {"lr": 0.5, "sizes": [1, 2], "more": {"a": 0.5, "b": [1, 2]}}


def test_what_is_wrong_is_said_once_and_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for text, line in (("a: 1\nb: !!int ''\n", 2), ("a: 1\na: 2\n", 2), ("a: *b\n", 1), ("a: {\n", 2)):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            read_settings(file)
        assert str(caught.value).count("c.yaml") == 1 and f"c.yaml:{line}: " in str(caught.value)
    with pytest.raises(ConfigError, match=r"no such setting.*the settings are policy, lr, sizes"):
        resolve(Whole, None, {"learning_rate": 0.1})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"policy": {"name": "random", "budget": 2}}, "policy.budget"),
        ({"policy": {"name": "guard", "policy": "psse"}}, "policy.policy"),
        ({"policy": {"name": "combine", "inputs": {"name": "random", "budget": 3}}}, "policy.inputs.budget"),
        ({"policy": {"name": "combine", "rows": {"budget": 0.5}}}, "policy.rows"),
        ({"model": {"name": "dlrm", "top": ["wide"]}}, "model.top.0"),
        ({"model": {"rows": 1}}, "model.rows"),
    ],
)
def test_a_wrong_setting_is_named_as_one_writes_it(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(named)}: "):
        validate(TrainConfig, {"data": "d", **settings})


def test_settings_without_a_name_belong_to_the_model_that_is_chosen_and_else_to_the_default(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: d\nmodel: {embedding_dim: 8}\n", encoding="utf-8")
    assert resolve(TrainConfig, file, {}).model == DLRMConfig(embedding_dim=8)
    assert resolve(TrainConfig, file, {"model.name": "mf"}).model == MatrixFactorizationConfig(embedding_dim=8)
    assert resolve(TrainConfig, None, {"data": "d"}, ["model.embedding_dim=4"]).model == DLRMConfig(embedding_dim=4)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, text) for text in ("010", "0100", "20:00", "1:30.5", "yes", "on", "No", "1e-3", "a b")),
        *(("true", True), ("False", False), ("~", None), ("", None)),
        *(("0", 0), ("-12", -12), ("1_000", 1000), ("0x1F", 31)),
        *(("1.5", 1.5), (".5", 0.5), ("1.0e-3", 0.001), (".inf", float("inf"))),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = documents.parse_yaml(f"a: {text}")["a"]
    assert found == value and type(found) is type(value)
    assert documents.parse_yaml(yaml.safe_dump({"a": value})) == {"a": value}


def test_a_number_that_yaml_1_1_would_read_otherwise() -> None:
    config = resolve(TrainConfig, None, {"data": "d"}, ["seed=010", "batch_size=0100", "shuffle=yes"])
    assert (config.seed, config.batch_size, config.shuffle) == (10, 100, True)
    for wrong in ("seed=yes", "epochs=on", "max_samples=20:00"):
        with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
            resolve(TrainConfig, None, {"data": "d"}, [wrong])
