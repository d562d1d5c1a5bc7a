"""What the comparison needs of FuxiCTR: data in its format, and its models trained its way or with the recipe."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from examples.clicks import Clicks
from examples.compare import Outcome
from examples.fuxictr import models
from examples.fuxictr.recipe import accelerate, train
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader

MODELS = {"DeepFM": models.DeepFM, "DCNv2": models.DCNv2, "DLRM": models.DLRM}
METRIC = "AUC"
LR = 1e-3


def run(name: str, data: Clicks, test: Clicks | None, folder: Path, untouched: str | None, policy: Any) -> Outcome:
    """One epoch; ``untouched`` None: FuxiCTR's own way; ``policy`` None: its own ``fit``."""
    fields = _feature_map(data, folder)
    loader = _loader(fields, data, folder / "train")
    torch.manual_seed(0)
    model = MODELS[name](
        fields,
        embedding_dim=16,
        hidden_units=[64, 32],
        learning_rate=LR,
        optimizer="adam",
        loss="binary_cross_entropy",
        model_root=str(folder),
        metrics=["AUC", "logloss"],
        verbose=0,
    )
    Path(model.model_dir).mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    report = None
    if untouched is not None:
        accelerate(model, LR, untouched)
    if policy is not None:
        report = train(model, loader, policy)
    else:
        # Its fit would also score and save after each epoch; the time of a training is compared.
        model._max_gradient_norm, model._eval_steps, model._total_steps = 10.0, sys.maxsize, 0
        model._stop_training = False
        model.train_epoch(loader)
    seconds = time.perf_counter() - began
    if test is None:
        return Outcome(float("nan"), seconds, report)
    return Outcome(model.evaluate(_loader(fields, test, folder / "test"))["AUC"], seconds, report)


def _feature_map(data: Clicks, folder: Path) -> FeatureMap:
    fields = FeatureMap("clicks", str(folder))
    for name, rows in data.rows.items():
        fields.features[name] = {"source": "", "type": "categorical", "vocab_size": rows}
    fields.features["year"] = {"source": "", "type": "numeric"}
    fields.labels, fields.default_emb_dim = ["label"], 16
    fields.num_fields = fields.get_num_fields()
    fields.set_column_index()
    return fields


def _loader(fields: FeatureMap, part: Clicks, path: Path) -> NpzDataLoader:
    np.savez(path, **part.columns)
    return NpzDataLoader(fields, str(path), batch_size=1024, num_workers=0)
