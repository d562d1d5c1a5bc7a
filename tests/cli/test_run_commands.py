from __future__ import annotations

import json
import re
import resource
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import typer
from typer.testing import CliRunner

from slipstream.cli.app import app
from slipstream.cli.entry import run
from slipstream.cli.settings import resolve
from slipstream.errors import ConfigError, DataError
from slipstream.report.runs import load_runs
from slipstream.training import TrainConfig, load_config

ROOT = Path(__file__).parents[2]
MODEL = "model: {name: dlrm, embedding_dim: 4, bottom: [4], top: [8]}\nbatch_size: 64\noptimizer: {lr: 0.05}\n"


def call(*arguments: str | Path) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set in which the user decides the label, and one trained run."""
    folder = tmp_path_factory.mktemp("project")
    draw = np.random.default_rng(0)
    users, items = draw.integers(0, 9, 1500), draw.integers(0, 5, 1500)
    lines = [f"{user % 2},{time},u{user},i{item}" for time, (user, item) in enumerate(zip(users, items, strict=True))]
    (folder / "raw.csv").write_text("\n".join(["click,time,user,item", *lines, ""]), encoding="utf-8")
    (folder / "schema.yaml").write_text("label: click\ntime: time\ncategorical: [user, item]\n", encoding="utf-8")
    (folder / "config.yaml").write_text(MODEL, encoding="utf-8")
    call("prepare", folder / "raw.csv", folder / "data", "--schema", folder / "schema.yaml")
    call("train", folder / "data", "--config", folder / "config.yaml", "--out", folder / "full", "--epochs", "3")
    return folder


def test_a_run_leaves_its_result_and_resolved_configuration(folder: Path) -> None:
    (run,) = load_runs([folder / "full"])
    assert run.policy == "none" and run.number("auc") == pytest.approx(1.0, abs=0.02)
    wanted = "auc log_loss calibration seconds samples_per_second policy share_of_inputs_trained"
    wanted += " share_of_row_updates_skipped seed machine versions commit"
    assert set(wanted.split()) <= run.result.keys()
    config = load_config(folder / "full" / "config.yaml")
    assert (config.epochs, config.batch_size, config.optimizer.lr) == (3, 64, 0.05)
    assert config.schedule.dense == "linear", "defaults are written out"


def test_flags_choose_policy_and_budget(folder: Path) -> None:
    out = folder / "random"
    arguments = ["--policy", "random", "--budget", "0.5", "--set", "policy.level=rows", "--seed", "3", "--quiet"]
    said = call("train", folder / "data", "--config", folder / "config.yaml", "--out", out, *arguments)
    config = load_config(out / "config.yaml")
    wanted = {"name": "random", "budget": 0.5, "level": "rows"}
    assert config.policy.model_dump().items() >= wanted.items() and config.seed == 3
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["share_of_row_updates_skipped"] == pytest.approx(0.5, abs=0.12), (
        "14 rows in 22 steps: a spread of 0.03"
    )
    assert "row updates skipped" in said


def test_evaluate_scores_the_range_that_was_held_out_alike(folder: Path) -> None:
    file = folder / "figures.json"
    said = call("evaluate", folder / "full", folder / "data", "--start", "1350", "--json", file)
    figures = json.loads(file.read_text(encoding="utf-8"))
    result = json.loads((folder / "full" / "result.json").read_text(encoding="utf-8"))
    assert figures["scores"]["samples"] == 150
    assert figures["scores"]["log_loss"] == pytest.approx(result["log_loss"], rel=1e-5)
    assert "head of user" in said and "trained on" not in said
    assert "of these samples 1,350 were trained on" in call("evaluate", folder / "full", folder / "data")


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_predictions_of_raw_and_prepared_data_agree(folder: Path, suffix: str) -> None:
    prepared, raw = folder / f"prepared.{suffix}", folder / f"raw_predicted.{suffix}"
    call("predict", folder / "full", folder / "data", prepared)
    unlabelled = folder / "new.csv"
    lines = [line.split(",", 1)[1] for line in (folder / "raw.csv").read_text(encoding="utf-8").splitlines()]
    unlabelled.write_text("\n".join([*lines, ""]), encoding="utf-8")
    call("predict", folder / "full", unlabelled, raw)
    read = pl.read_parquet if suffix == "parquet" else pl.read_csv
    ours, theirs = read(prepared), read(raw)
    assert ours.columns == ["sample", "probability"] and ours.height == 1500
    assert np.allclose(ours["probability"], theirs["probability"], atol=1e-5)
    assert ours["probability"].is_between(0, 1).all()


def test_predictions_of_raw_pairs_stand_in_the_order_of_the_file(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    users, items = np.repeat(np.arange(20), 20), draw.integers(0, 30, 400)
    pl.DataFrame({"user": users, "item": items}).unique().sort("user", "item").write_csv(tmp_path / "pairs.csv")
    (tmp_path / "config.yaml").write_text("model: {name: mf, embedding_dim: 4}\nbatch_size: 64\n", encoding="utf-8")
    call("train", tmp_path / "pairs.csv", "--config", tmp_path / "config.yaml", "--out", tmp_path / "run", "--quiet")
    call("predict", tmp_path / "run", tmp_path / "pairs.csv", tmp_path / "all.csv")
    lines = (tmp_path / "pairs.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "last.csv").write_text("\n".join([lines[0], *lines[-5:], ""]), encoding="utf-8")
    call("predict", tmp_path / "run", tmp_path / "last.csv", tmp_path / "few.csv")
    whole, few = (pl.read_csv(tmp_path / name)["probability"] for name in ("all.csv", "few.csv"))
    assert whole.n_unique() > 100 and np.allclose(whole[-5:], few, atol=1e-6)


def test_predictions_go_to_a_known_kind_of_file(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.parquet or a \.csv"):
        call("predict", folder / "full", folder / "data", folder / "out.txt")


def test_evaluate_of_a_raw_file_says_how_to_prepare_it(folder: Path) -> None:
    (folder / "raw.csv").write_text("label,a\n1,x\n", encoding="utf-8")
    with pytest.raises(DataError, match="--extend-vocabulary TRAINING_DATA"):
        call("evaluate", folder / "full", folder / "raw.csv")


def test_a_folder_without_model_is_named(folder: Path) -> None:
    with pytest.raises((DataError, ConfigError), match="data"):
        call("evaluate", folder / "data", folder / "data")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "psse", "--budget", "2"], "budget"),
        (["--model", "unheard_of"], "model"),
        (["--set", "optimizer.speed=9"], "speed"),
        (["--batch-size", "0"], "batch_size"),
    ],
)
def test_a_wrong_setting_is_named(folder: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        call("train", folder / "data", "--out", folder / "wrong", *arguments)
    assert not (folder / "wrong").exists()


@pytest.mark.parametrize("file", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda file: file.parent.name)
def test_shipped_configurations_are_valid(file: Path) -> None:
    assert resolve(TrainConfig, file, {"data": "data"}).to_yaml()


def test_every_command_explains_itself() -> None:
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_what_a_second_training_replaces_is_said_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(folder / "data"), "--config", str(folder / "config.yaml"), "--out", str(folder / "twice")]
    assert run([*arguments, "--quiet"]) == 0 and capsys.readouterr().err == ""
    auc = load_runs([folder / "twice"])[0].number("auc")
    assert run([*arguments, "--quiet", "--policy", "random"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        rf"slipstream: replaces the run of \d{{4}}-\d\d-\d\d \d\d:\d\d \(policy none, AUC {auc:.4f}\) in .*", line
    )
    assert str(folder / "twice" / ".replaced") in line


@pytest.mark.parametrize("flag", ["--out", "--resume"])
def test_an_empty_path_is_not_the_current_folder(
    folder: Path, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", str(folder / "data"), flag, "", "--quiet"]) == 2
    assert "the path is empty: name a folder" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_configuration_that_was_written_by_hand_is_not_written_over(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(MODEL, encoding="utf-8")
    (tmp_path / "mine.yaml").symlink_to("config.yaml")
    for name in ("config.yaml", "mine.yaml"):
        with pytest.raises(ConfigError, match=rf"{name} would be written over; choose another run folder"):
            call("train", folder / "data", "--config", tmp_path / name, "--out", tmp_path)
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == MODEL
    given = ["--config", folder / "full" / "config.yaml"]
    assert "AUC" in call("train", "--resume", folder / "full", *given), "its own, and nothing is trained anew"


def test_resume_goes_on_in_its_own_folder_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for out in (folder / "other", "null"):
        with pytest.raises(ConfigError, match="--resume names the run folder"):
            call("train", "--resume", folder / "full", "--set", f"out={out}")
    assert not (folder / "other").exists()
    monkeypatch.chdir(folder)
    assert "AUC" in call("train", "--resume", folder / "full", "--set", "out=./full")


def test_predictions_do_not_take_the_place_of_what_they_are_made_from(folder: Path, tmp_path: Path) -> None:
    text = "click,time,user,item\n1,0,u1,i1\n0,1,u2,i2\n"
    (tmp_path / "in.csv").write_text(text, encoding="utf-8")
    (tmp_path / "link.csv").symlink_to("in.csv")
    (tmp_path / "model.csv").symlink_to(folder / "full" / "model.safetensors")
    vocabulary = folder / "data" / "vocabulary" / "user.parquet"
    for out in (tmp_path / "in.csv", tmp_path / "link.csv", tmp_path / "model.csv", vocabulary):
        with pytest.raises(ConfigError, match=f"{out.name} is a file that the predictions are made from; choose"):
            call("predict", folder / "full", tmp_path / "in.csv", out)
    for out in (tmp_path / "model.csv", vocabulary):
        with pytest.raises(ConfigError, match=f"{out.name} is a file that the predictions are made from; choose"):
            call("predict", folder / "full", folder / "data", out)
    assert (tmp_path / "in.csv").read_text(encoding="utf-8") == text
    for _ in range(2):
        call("predict", folder / "full", tmp_path / "in.csv", tmp_path / "out.csv")


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_predictions_that_do_not_fit_on_the_disk_are_one_line(
    folder: Path, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        status = run(["predict", str(folder / "full"), str(folder / "data"), str(tmp_path / f"out.{suffix}")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2 and f"out.{suffix}: cannot be written (" in line and "File too large" in line
    assert not list(tmp_path.iterdir())
