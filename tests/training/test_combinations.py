"""Settings that are right one by one, together: what the fuzzing of whole trainings found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slipstream.data.schema import FeatureInfo
from slipstream.data.store import Store, StoreWriter
from slipstream.errors import ConfigError, NonFiniteError
from slipstream.training import TrainConfig, evaluate, predict, train

COLUMNS = (FeatureInfo(name="user", num_rows=20), FeatureInfo(name="item", num_rows=15))
BAGS = (FeatureInfo(name="genres", num_rows=20, multi_hot=True), FeatureInfo(name="tags", num_rows=15, multi_hot=True))


def config(out: Path, **settings: Any) -> TrainConfig:
    return TrainConfig.model_validate({"data": "unused", "out": out, "batch_size": 16, "threads": 1, **settings})


def without_dense(path: Path, features: tuple[FeatureInfo, ...], *, every: int = 1) -> Store:
    """400 samples with no dense column, and in bags an id in every so many of them."""
    rng, count = np.random.default_rng(0), 400
    ids = np.stack([rng.integers(0, feature.num_rows, count) for feature in features], 1).astype(np.int32)
    labels = rng.integers(0, 2, count).astype(np.float32)
    offsets = np.append(0, (np.arange(count) % every == 0).cumsum()).astype(np.int64)
    bags = [(column[::every], offsets) for column in ids.T] if features[0].multi_hot else []
    with StoreWriter(path, features, dense=(), has_time=False) as writer:
        writer.append(ids[:, :0] if bags else ids, np.zeros((count, 0), np.float32), labels, None, bags)
        return writer.commit({})


@pytest.mark.parametrize("objective", ["logistic", "bpr"])
def test_matrix_factorization_of_data_with_more_features_predicts(
    make_store: Callable[..., Store], tmp_path: Path, objective: str
) -> None:
    store, out = make_store(400), tmp_path / "run"
    train(config(out, model={"name": "mf", "embedding_dim": 4, "objective": objective}), store=store)
    assert len(predict(out, store)) == 400


@pytest.mark.parametrize("policy", ["guard", "slipstream", "order", "psse"])
@pytest.mark.parametrize("name", ["dlrm", "deepfm", "dcnv2"])
def test_bf16_without_a_dense_column(tmp_path: Path, name: str, policy: str) -> None:
    layers = {"bottom": [8], "top": [8]} if name == "dlrm" else {"deep": [8]}
    settings = {
        "guard": {"first_copy": 1, "measure_every": 1},
        "slipstream": {"hot_bytes": 200, "snapshot_start": 0},
        "order": {"hot_bytes": 200},
        "psse": {"warmup_steps": 2, "every": 2},
    }[policy]
    model, skipping = {"name": name, "embedding_dim": 4, **layers}, {"name": policy, **settings}
    made = config(tmp_path / "run", bf16=True, model=model, policy=skipping)
    store = without_dense(tmp_path / "store", COLUMNS)
    result = train(made, store=store)
    assert evaluate(made.out or tmp_path, store, start=360).scores.log_loss == pytest.approx(result.log_loss, rel=1e-6)


@pytest.mark.parametrize("structure", ["stacked", "parallel"])
def test_cross_layers_alone(make_store: Callable[..., Store], tmp_path: Path, structure: str) -> None:
    made = config(tmp_path / "run", model={"name": "dcnv2", "embedding_dim": 4, "deep": [], "structure": structure})
    assert train(made, store=make_store(3000)).auc > 0.6


@pytest.mark.parametrize("batch_size", [1, 7])
def test_row_importance_of_batches_whose_bags_are_empty(tmp_path: Path, batch_size: int) -> None:
    model = {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]}
    made = config(tmp_path / "run", model=model, policy={"name": "row_importance"}, batch_size=batch_size)
    assert train(made, store=without_dense(tmp_path / "store", BAGS, every=50)).samples_scored == 40


def test_a_softmax_over_bags_is_refused(tmp_path: Path) -> None:
    model = {"name": "two_tower", "objective": "softmax", "layers": [8]}
    with pytest.raises(ConfigError, match="one id a sample"):
        train(config(tmp_path / "run", model=model), store=without_dense(tmp_path / "store", BAGS))


@pytest.mark.parametrize("bf16", [False, True])
def test_a_guard_measures_the_same_with_tables_in_host_memory(
    make_store: Callable[..., Store], tmp_path: Path, bf16: bool
) -> None:
    settings = {
        "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
        "policy": {"name": "guard", "first_copy": 64, "measure_every": 1},
        "bf16": bf16,
    }
    store = make_store(2000)
    plain, cached = (
        train(config(tmp_path / name, **settings, row_cache_bytes=size), store=store)
        for name, size in (("plain", None), ("cached", 4000))
    )
    gains = [result.policy_report["loss_per_doubling"] for result in (plain, cached)]
    assert gains[0] and gains[1] == pytest.approx(gains[0], rel=1e-3)


def test_a_batch_that_is_not_finite_is_told_so_in_bf16_without_a_dense_column(tmp_path: Path) -> None:
    model = {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]}
    made = config(tmp_path / "run", model=model, bf16=True, optimizer={"name": "sgd", "lr": 1e9})
    with pytest.raises(NonFiniteError, match="from samples"):
        train(made, store=without_dense(tmp_path / "store", COLUMNS))
