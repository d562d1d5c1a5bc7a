"""Settings that are right one by one, together: what the fuzzing of whole trainings found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from slipstream.data.schema import FeatureInfo
from slipstream.data.store import Store, StoreWriter
from slipstream.errors import ConfigError, NonFiniteError, SlipstreamError
from slipstream.training import TrainConfig, evaluate, predict, train
from slipstream.training.profile import profile

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


def test_dot_products_of_one_vector_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two features at least"):
        train(config(tmp_path / "run", model="dlrm"), store=without_dense(tmp_path / "store", COLUMNS[:1]))


SMALL = {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]}
RANDOM_ROWS = {"name": "random", "level": "rows"}


@pytest.mark.parametrize(
    ("before", "after", "skipped"),
    [
        (RANDOM_ROWS, {**RANDOM_ROWS, "budget": 1.0}, 0.0),
        (RANDOM_ROWS, {**RANDOM_ROWS, "budget": 0.25}, 0.75),
        (RANDOM_ROWS, "random", 0.0),
        ("random", RANDOM_ROWS, 0.5),
        ({"name": "random"}, {"name": "random", "protect_tail": 5}, 0.0),
    ],
)
def test_a_continued_training_has_the_gates_of_its_own_settings(
    make_store: Callable[..., Store], tmp_path: Path, before: Any, after: Any, skipped: float
) -> None:
    store = make_store(2000)
    train(config(tmp_path / "first", model=SMALL, policy=before), store=store)
    result = train(
        config(tmp_path / "second", model=SMALL, policy=after, continue_from=tmp_path / "first"), store=store
    )
    assert result.share_of_row_updates_skipped == pytest.approx(skipped, abs=0.03)


@pytest.mark.parametrize(
    ("before", "after", "path"),
    [
        ({"name": "guard", "policy": "random"}, {"name": "guard", "policy": "importance"}, "policy.policy"),
        ({"name": "importance", "score": "label"}, {"name": "importance", "score": "scout"}, "policy.score"),
        (
            {"name": "combine", "inputs": "random", "rows": RANDOM_ROWS},
            {"name": "combine", "inputs": "importance", "rows": RANDOM_ROWS},
            "policy.inputs.name",
        ),
    ],
)
def test_what_has_another_state_is_not_continued(
    make_store: Callable[..., Store], tmp_path: Path, before: Any, after: Any, path: str
) -> None:
    store = make_store(1000)
    train(config(tmp_path / "first", model=SMALL, policy=before), store=store)
    again = config(tmp_path / "second", model=SMALL, policy=after, continue_from=tmp_path / "first")
    with pytest.raises(SlipstreamError, match=rf"cannot continue: {path} was"):
        train(again, store=store)


def test_tables_in_host_memory_do_not_continue(make_store: Callable[..., Store], tmp_path: Path) -> None:
    store = make_store(1000)
    train(config(tmp_path / "first", model=SMALL), store=store)
    again = config(tmp_path / "second", model=SMALL, row_cache_bytes=6000, continue_from=tmp_path / "first")
    with pytest.raises(ConfigError, match="leave row_cache_bytes out"):
        train(again, store=store)


def test_hardest_of_one_item(tmp_path: Path) -> None:
    model = {"name": "mf", "embedding_dim": 4, "objective": "bpr", "candidates": 3}
    columns = (COLUMNS[0], FeatureInfo(name="item", num_rows=1))
    result = train(config(tmp_path / "run", model=model), store=without_dense(tmp_path / "store", columns))
    assert result.samples_scored == 40


def test_a_continued_guard_measures_anew(make_store: Callable[..., Store], tmp_path: Path) -> None:
    settings = {"model": SMALL, "policy": {"name": "guard", "first_copy": 32, "measure_every": 1, "tolerance": 0.5}}
    store = make_store(2000)
    train(config(tmp_path / "first", **settings), store=store)
    again = train(config(tmp_path / "second", **settings, continue_from=tmp_path / "first"), store=store)
    assert again.policy_report["loss_per_doubling"] is not None
    assert "the first epoch is over" not in str(again.policy_report["moves"])


@pytest.mark.parametrize("policy", [RANDOM_ROWS, {"name": "psse", "warmup_steps": 2, "every": 2}])
def test_columns_of_another_order_than_the_models(tmp_path: Path, policy: Any) -> None:
    model = {"name": "mf", "embedding_dim": 4, "user": "item", "item": "user"}
    made = config(tmp_path / "run", model=model, policy=policy)
    train(made, store=without_dense(tmp_path / "store", COLUMNS))
    assert '"event": "gates"' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_periodic_slipstream_of_columns_of_another_order_continues(tmp_path: Path) -> None:
    settings = {
        "model": {"name": "mf", "embedding_dim": 4, "user": "item", "item": "user"},
        "policy": {"name": "slipstream", "mode": "periodic", "every": 4, "window": 2, "hot_bytes": 64},
    }
    store = without_dense(tmp_path / "store", COLUMNS)
    train(config(tmp_path / "first", **settings), store=store)
    again = train(config(tmp_path / "second", **settings, continue_from=tmp_path / "first"), store=store)
    assert again.samples_scored == 40


def test_batches_that_are_not_finite_are_left_out_with_tables_in_host_memory(
    make_store: Callable[..., Store], tmp_path: Path
) -> None:
    settings = {
        "model": SMALL, "on_nonfinite": "skip", "optimizer": {"name": "sgd", "lr": 3e4}, "max_samples": 300,
    }  # fmt: skip
    store = make_store(2000)
    plain, cached = (
        train(config(tmp_path / name, **settings, row_cache_bytes=size), store=store)
        for name, size in (("plain", None), ("cached", 6000))
    )
    assert (cached.steps, cached.log_loss) == (plain.steps, pytest.approx(plain.log_loss, rel=1e-3))


def test_a_step_that_is_done_before_its_loss_is_known_cannot_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="hotline has taken its step"):
        config(tmp_path, hotline=True, row_cache_bytes=6000, on_nonfinite="skip")


def test_a_cache_that_trains_can_be_profiled(make_store: Callable[..., Store], tmp_path: Path) -> None:
    made = config(tmp_path / "run", model=SMALL, row_cache_bytes=44 * 32)
    store = make_store(2000)
    train(made, store=store)
    assert profile(made.model_copy(update={"out": None}), store=store, steps=4) is not None
