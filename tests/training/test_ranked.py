"""Trainings on pairs, scored by ranked lists of the full catalogue."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from slipstream.cli.app import app
from slipstream.data.batch import Inputs
from slipstream.data.prepare import PrepareOptions, prepare
from slipstream.data.split import named_splits
from slipstream.data.store import Store
from slipstream.errors import DataError
from slipstream.training import TrainConfig, evaluate, train
from slipstream.training.inference import load_run

MF = {"name": "mf", "embedding_dim": 16, "objective": "bpr"}
TOWERS = {"name": "two_tower", "embedding_dim": 16, "layers": [16], "init": "normal", "init_std": 0.1}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users of four groups, each fond of its own quarter of the items."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(80), 25)
    items = (users % 4) * 30 + (rng.beta(1, 2, users.size) * 30).astype(int)
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    pl.DataFrame({"user": users, "item": items}).unique(maintain_order=True).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def positives(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepare(pairs, tmp_path_factory.mktemp("stores") / "positives", options=PrepareOptions(negatives=0))


def config(store: Store, model: dict[str, object], **settings: object) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "data": store.path,
            "model": model,
            "optimizer": {"name": "adam", "lr": 0.02},
            "batch_size": 64,
            "epochs": 8,
            "shuffle": True,
            "ranking": {"k": 10},
            **settings,
        }
    )


@pytest.mark.parametrize("model", [{"name": "mf"}, TOWERS, {"name": "dlrm"}])
def test_cross_entropy_of_positives_alone_is_refused(positives: Store, model: dict[str, object]) -> None:
    """It ended with a log-loss of 0 and lists of no use, and said nothing."""
    with pytest.raises(DataError, match=r"positives alone.*--negatives=1.*model\.objective=bpr"):
        train(config(positives, model), store=positives)


def test_a_fifth_of_each_users_pairs_is_held_out(pairs: Path, positives: Store, tmp_path: Path) -> None:
    ranges, users = named_splits(positives), positives.ids[:, 0].numpy()
    (start, cut), (_, stop) = ranges["train"], ranges["test"]
    assert (start, stop) == (0, positives.num_samples)
    of_each = np.bincount(users, minlength=81)[1:]
    assert np.bincount(users[cut:], minlength=81)[1:].tolist() == (of_each * 0.2).astype(int).tolist()
    assert "0.2 of each user's pairs, drawn with seed 0" in str(positives.manifest.provenance["split"])
    other = prepare(pairs, tmp_path / "other", options=PrepareOptions(negatives=0, seed=1))
    assert other.fingerprint != positives.fingerprint


@pytest.mark.parametrize("model", [MF, {**TOWERS, "objective": "softmax"}])
def test_lists_equal_those_of_the_models_own_logits(positives: Store, tmp_path: Path, model: dict[str, object]) -> None:
    result = train(config(positives, model, out=tmp_path / "run"), store=positives)
    assert result.auc is None and result.ranking is not None
    assert result.quality == result.ranking.ndcg
    trained, _, _ = load_run(tmp_path / "run")
    cut = named_splits(positives)["test"][0]
    ids = positives.ids.numpy()
    items = torch.arange(positives.one_hot[1].num_rows, dtype=torch.int32)
    recalls = []
    for user in range(1, 81):
        wanted = set(ids[cut:][ids[cut:, 0] == user, 1].tolist())
        with torch.no_grad():
            pair = torch.stack([torch.full_like(items, user), items], dim=1)
            scores = trained(Inputs(torch.empty(len(items), 0), pair)).numpy()
        scores[0] = -np.inf
        scores[ids[:cut][ids[:cut, 0] == user, 1]] = -np.inf
        if wanted:
            recalls.append(len(wanted & set(np.argsort(-scores)[:10].tolist())) / len(wanted))
    assert result.ranking.users == len(recalls)
    assert result.ranking.recall == pytest.approx(np.mean(recalls), abs=1e-3)  # ties of rounding apart
    assert result.ranking.recall > 0.35, "10 of 120 items at random hold 0.08"
    assert set(result.ranking.recall_by_popularity) == {"head", "torso", "tail", "new"}
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["ranking"]["ndcg"] == result.ranking.ndcg and saved["diversity"]["of"] == "lists of 10 items"
    start, stop = named_splits(positives)["test"]
    assert evaluate(tmp_path / "run", positives, start=start, stop=stop).ranking == result.ranking


def test_pairs_with_negatives_have_auc_and_lists(pairs: Path, tmp_path: Path) -> None:
    store = prepare(pairs, tmp_path / "store")
    base = config(store, {**TOWERS, "temperature": 0.2}, ranking={"k": 10, "every": 4})
    result = train(base, store=store)
    assert result.auc is not None and result.auc > 0.7
    assert [point.ndcg is None for point in result.learning_curve] == [True, True, True, False] * 2
    assert result.popularity_feature == "item"
    stream = TrainConfig.model_validate(
        {**base.model_dump(exclude={"epochs", "shuffle"}), "mode": "prequential", "chunk_size": 500}
    )
    assert train(stream, store=store).ranking is None, "a stream has no held-out pairs"


def test_scored_samples_without_a_new_pair_are_refused(tmp_path: Path) -> None:
    again = pl.DataFrame({"user": [1, 1, 2, 1], "item": [5, 6, 5, 5], "split": [0, 0, 0, 1]})
    again.write_parquet(tmp_path / "pairs.parquet")
    store = prepare(tmp_path / "pairs.parquet", tmp_path / "store", options=PrepareOptions(negatives=0))
    with pytest.raises(DataError, match="no pair to rank"):
        train(config(store, MF), store=store)


def test_the_command_line_ranks_and_compares(positives: Store, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config(positives, MF, epochs=1).to_yaml(), encoding="utf-8")
    run = CliRunner(env={"COLUMNS": "200"})
    for policy in ("none", "random"):
        arguments = ["--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / policy), "--policy", policy]
        done = run.invoke(app, ["train", str(positives.path), *arguments, "--quiet"])
        assert done.exit_code == 0, done.output
        assert "NDCG@10" in done.output and "AUC" not in done.output
    done = run.invoke(app, ["evaluate", str(tmp_path / "none"), str(positives.path), "--split", "test"])
    assert done.exit_code == 0 and "Recall@10" in done.output, done.output
    done = run.invoke(app, ["evaluate", str(tmp_path / "none"), str(positives.path), "--split", "validation"])
    assert "choose of train, test" in str(done.exception)
    page = tmp_path / "page.html"
    done = run.invoke(app, ["compare", str(tmp_path / "none"), str(tmp_path / "random"), "--html", str(page)])
    assert done.exit_code == 0 and "NDCG" in done.output, done.output
    assert "NDCG@10 against training time" in page.read_text(encoding="utf-8")
