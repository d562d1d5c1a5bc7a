"""What the comparison needs of RecBole: data in its format, and its models trained its way or with the recipe."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np

import examples.recbole.numpy_names  # noqa: F401  # isort: skip
from examples.clicks import Clicks
from examples.compare import Outcome
from examples.recbole.recipe import accelerate, train
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

MODELS = {
    "BPR": {"embedding_size": 16},
    "NeuMF": {"mf_embedding_size": 16, "mlp_embedding_size": 16, "mlp_hidden_size": [64, 32]},
    # Its cross-entropy reads the whole table in every step; its pairwise loss does not.
    "SASRec": {"hidden_size": 16, "inner_size": 32, "loss_type": "BPR", "MAX_ITEM_LIST_LENGTH": 10},
}
METRIC = "NDCG@10"
BATCH = 1024
_MOST_USERS = 2_000


def run(name: str, data: Clicks, test: Clicks | None, folder: Path, untouched: str | None, policy: Any) -> Outcome:
    """One epoch; ``untouched`` None: RecBole's own way; ``policy`` None: its own loader."""
    _write(data, folder, most_users=None if test is None else _MOST_USERS)
    sequential = name == "SASRec"
    config = Config(
        model=name,
        dataset="clicks",
        config_dict={
            "data_path": str(folder),
            "checkpoint_dir": str(folder),
            "USER_ID_FIELD": "user_id",
            "ITEM_ID_FIELD": "item_id",
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
            "eval_args": {"split": {"LS": "valid_and_test"} if sequential else {"RS": [0.8, 0.1, 0.1]}, "order": "TO"},
            "train_batch_size": BATCH,
            "eval_batch_size": 65_536,
            "metrics": ["NDCG"],
            "topk": [10],
            "valid_metric": "NDCG@10",
            "metric_decimal_place": 6,  # its 4 would hide differences near the tolerance
            "use_gpu": False,
            "show_progress": False,
            "state": "CRITICAL",
            "seed": 0,
            "epochs": 1,
        }
        | MODELS[name],
    )
    init_seed(0, True)
    dataset = create_dataset(config)
    if test is None:  # a catalogue larger than the log
        items = data.rows["movie"] + (data.rows["user"] if sequential else 0)  # SASRec has no table of users
        for field, rows in (("user_id", data.rows["user"]), ("item_id", items)):
            dataset.field2id_token[field] = np.arange(rows)
    train_data, valid_data, _ = data_preparation(config, dataset)
    init_seed(0, True)
    model = get_model(name)(config, train_data.dataset)
    with contextlib.chdir(folder):  # it writes log_tensorboard/ where it stands
        trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
    report = None
    began = time.perf_counter()
    if untouched is not None:
        accelerate(trainer, untouched)
    if policy is not None:
        report = train(trainer, train_data, ["user_id", "item_id"], policy, BATCH)
    else:
        trainer._train_epoch(train_data, 0)
    seconds = time.perf_counter() - began
    if test is None:
        return Outcome(float("nan"), seconds, report)
    return Outcome(trainer.evaluate(valid_data, load_best_model=False)["ndcg@10"], seconds, report)


def _write(data: Clicks, folder: Path, most_users: int | None) -> None:
    """RecBole's file of interactions: all, or the positives of the most active users, as scoring all takes long."""
    columns = data.columns
    chosen = np.ones(len(data), dtype=bool)
    if most_users is not None:
        chosen = columns["label"] > 0.5
        active = np.bincount(columns["user"][chosen]).argsort()[::-1][:most_users]
        chosen &= np.isin(columns["user"], active)
    (folder / "clicks").mkdir(exist_ok=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for when, (user, item) in enumerate(zip(columns["user"][chosen], columns["movie"][chosen], strict=True)):
        lines.append(f"{user}\t{item}\t{when}")
    (folder / "clicks" / "clicks.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
