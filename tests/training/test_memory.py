"""What the estimate of memory leaves out is found when the memory is taken."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slipstream.data.schema import FeatureInfo
from slipstream.data.store import Store, StoreWriter
from slipstream.evaluation import metrics, novelty, popularity
from slipstream.training import TrainConfig, run, train
from slipstream.training.checkpoint.tree import split_tree
from slipstream.training.loop import Trainer
from slipstream.training.memory import estimate_memory, scoring_memory

ADAM, ADAGRAD = {"name": "adam", "lr": 0.01}, {"name": "adagrad", "lr": 0.05}
IMPORTANCE = {"name": "importance", "bits": 12}
PSSE = {"name": "psse", "budget": 0.5, "warmup_steps": 4, "every": 4}
SATURATION = {"name": "saturation", "budget": 0.5, "warmup_steps": 4, "every": 4}


def config(**settings: Any) -> TrainConfig:
    small = {"name": "dlrm", "embedding_dim": 4, "bottom": [4], "top": [4]}
    return TrainConfig.model_validate({"data": "unused", "model": small, "threads": 1, **settings}).resolved()


def one_large_feature(path: Path, samples: int, rows: int) -> Store:
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(0, rows, samples), rng.integers(0, 5, samples)], 1).astype(np.int32)
    labels = (rng.random(samples) < 0.3).astype(np.float32)
    features = [FeatureInfo(name="item", num_rows=rows), FeatureInfo(name="hour", num_rows=5)]
    with StoreWriter(path, features, dense=()) as writer:
        writer.append(ids, np.empty((samples, 0), dtype=np.float32), labels)
        return writer.commit({})


@pytest.mark.parametrize("rows", [1000, 200_000])
@pytest.mark.parametrize("mode", [{"mode": "prequential", "score_from": 1000}, {"holdout": 0.9}])
def test_scoring_takes_no_more_than_was_estimated(tmp_path, monkeypatch, mode, rows):
    for module in (metrics, novelty, popularity):
        monkeypatch.setattr(module, "_PIECE", 1024)  # what is held of a piece does not grow with the samples
    taken, result = {}, run._result

    def measured(trainer: Trainer, labels: np.ndarray, logits: np.ndarray, *more: Any) -> Any:
        kept = [array if array.base is None else array.base for array in (labels, logits)]
        tracemalloc.start()
        try:
            return result(trainer, labels, logits, *more)
        finally:
            taken["bytes"] = tracemalloc.get_traced_memory()[1] + sum(array.nbytes for array in kept)
            tracemalloc.stop()

    monkeypatch.setattr(run, "_result", measured)
    settings = config(batch_size=8192, **mode)
    store = one_large_feature(tmp_path / "store", 150_000, rows)
    train(settings, store=store)
    assert taken["bytes"] <= scoring_memory(settings, store) + 500_000 < 2 * taken["bytes"]


@pytest.mark.parametrize(
    ("policy", "optimizer"),
    [
        ({"name": "guard", "first_copy": 64}, ADAM),
        (IMPORTANCE, ADAM),
        (SATURATION, ADAM),
        (SATURATION, ADAGRAD),
        (PSSE, ADAM),
        ({**PSSE, "protect_tail": 3}, ADAM),
        ({**PSSE, "scores": "sketch", "sketch_width": 64, "sketch_heavy": 64}, ADAM),
        ({"name": "subsampling", "warmup_steps": 4, "every": 4}, ADAM),
        ({"name": "combine", "inputs": IMPORTANCE, "rows": PSSE}, ADAM),
        ({"name": "slipstream", "mode": "periodic", "every": 9, "window": 4, "band": 0.2, "hot_bytes": 800}, ADAM),
    ],
)
def test_policies_keep_no_more_than_was_estimated(make_store, policy, optimizer):
    store = make_store(1500)
    settings = config(policy=policy, optimizer=optimizer, batch_size=64)
    trainer = Trainer(settings, store)
    trainer.run()
    _, tensors = split_tree(trainer.skipper.policy.state_dict())
    kept = sum(tensor.nbytes for tensor in tensors.values())
    estimated = estimate_memory(settings, store) - estimate_memory(config(optimizer=optimizer, batch_size=64), store)
    assert 0 < kept <= estimated <= 2.5 * kept
