"""TensorBoard, MLflow and Weights & Biases as listeners of a training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.cli.test_run_commands import call

from slipstream.errors import ConfigError, NotInstalled
from slipstream.interop import loggers
from slipstream.interop.loggers import LOGGERS, make_logger
from slipstream.training import RunDone, TrainConfig
from slipstream.training import train as run_training

MODEL = "model: {name: dlrm, embedding_dim: 4, bottom: [4], top: [8]}\nbatch_size: 64\nlog_every: 5\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logged")
    draw = np.random.default_rng(0)
    lines = [f"{draw.integers(2)},{n},u{draw.integers(9)},i{draw.integers(5)}" for n in range(1500)]
    (folder / "raw.csv").write_text("\n".join(["click,time,user,item", *lines, ""]), encoding="utf-8")
    (folder / "schema.yaml").write_text("label: click\ntime: time\ncategorical: [user, item]\n", encoding="utf-8")
    (folder / "config.yaml").write_text(MODEL, encoding="utf-8")
    call("prepare", folder / "raw.csv", folder / "data", "--schema", folder / "schema.yaml")
    return folder


def train(data: Path, out: Path, logger: str) -> None:
    call("train", data / "data", "--config", data / "config.yaml", "--out", out, "--logger", logger, "--quiet")


def test_tensorboard_has_steps_and_results(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(data, tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    names = set(events.Tags()["scalars"])
    assert {"train/loss", "train/samples_per_second", "holdout/auc", "result/auc"} <= names
    assert len(events.Scalars("train/loss")) >= 3 and events.Scalars("result/auc")[0].step == 1350


def test_mlflow_has_a_finished_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train(data, tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("slipstream")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["model.name"] == "dlrm"
    assert "result/auc" in run.data.metrics and len(client.get_metric_history(run.info.run_id, "train/loss")) >= 3


def test_wandb_writes_an_offline_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    train(data, tmp_path / "run", "wandb")
    (folder,) = (tmp_path / "run" / "wandb" / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb"))


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_is_named_with_its_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(NotInstalled, match=rf"needs slipstream-rec\[{name}\]; pip install"):
        make_logger(name, tmp_path)


def test_an_unknown_logger_and_a_training_without_folder(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tensorboard, mlflow, wandb"):
        make_logger("comet", tmp_path)
    with pytest.raises(ConfigError, match="add --out"):
        call("train", data / "data", "--logger", "tensorboard", "--quiet")


def test_results_without_an_auc_and_a_logger_that_fails_cost_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[str, float] = {}

    class Failing:
        def __call__(self, event: object) -> None:
            if isinstance(event, RunDone):
                logged.update(loggers._outcome(event.result))
                raise RuntimeError("the network is down")

    (tmp_path / "pairs.csv").write_text("user,item\n" + "".join(f"{n % 40},{(n + n // 40) % 30}\n" for n in range(600)))
    config = TrainConfig(
        data=tmp_path / "pairs.csv",
        cache=tmp_path / "cache",
        out=tmp_path / "run",
        model={"name": "mf", "embedding_dim": 4, "objective": "bpr"},
        batch_size=64,
        prepare={"negatives": 0},
    )
    with pytest.raises(RuntimeError, match="network"):
        run_training(config, listeners=[Failing()])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["auc"] is None and "result/auc" not in logged
    assert logged["result/ranking/ndcg"] == pytest.approx(result["ranking"]["ndcg"])
