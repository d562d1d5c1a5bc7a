"""What the comparison needs of DeepCTR-Torch: its models trained its way or with the recipe.

Its L2 penalty on whole tables (1e-5 by default) is off in both: with it every step passes over every table, whatever
the optimizer.
"""

from __future__ import annotations

import contextlib
import io
import time
from pathlib import Path
from typing import Any

import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat, get_feature_names
from deepctr_torch.models import DIN, DeepFM
from examples.clicks import HISTORY, Clicks
from examples.compare import Outcome
from examples.deepctr_torch.recipe import accelerate, train

METRIC = "AUC"
LR = 1e-3
BATCH = 1024


def _deepfm(rows: dict[str, int]) -> Any:
    fields = [SparseFeat(name, size, embedding_dim=16) for name, size in rows.items()] + [DenseFeat("year", 1)]
    return DeepFM(fields, fields, dnn_hidden_units=(64, 32), l2_reg_linear=0, l2_reg_embedding=0)


def _din(rows: dict[str, int]) -> Any:
    fields: list[Any] = [SparseFeat(name, size, embedding_dim=16) for name, size in rows.items()]
    history = SparseFeat("hist_movie", rows["movie"], embedding_dim=16, embedding_name="movie")
    fields += [VarLenSparseFeat(history, HISTORY, length_name="history_length"), DenseFeat("year", 1)]
    return DIN(fields, ["movie"], dnn_hidden_units=(64, 32), l2_reg_embedding=0)


MODELS = {"DeepFM": _deepfm, "DIN": _din}


def run(name: str, data: Clicks, test: Clicks | None, folder: Path, untouched: str | None, policy: Any) -> Outcome:
    """One epoch; ``untouched`` None: DeepCTR-Torch's own way; ``policy`` None: its own ``fit``."""
    model = MODELS[name](data.rows)  # it seeds itself
    model.compile(torch.optim.Adam(model.parameters(), lr=LR), "binary_crossentropy", ["auc"])
    x, y = _inputs(model, data)
    began = time.perf_counter()
    report = None
    if untouched is not None:
        accelerate(model, LR, untouched)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if policy is not None:
            report = train(model, x, y, list(data.rows), policy, BATCH)
        else:
            model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0, shuffle=False)
    seconds = time.perf_counter() - began
    if test is None:
        return Outcome(float("nan"), seconds, report)
    return Outcome(model.evaluate(*_inputs(model, test), batch_size=BATCH)["auc"], seconds, report)


def _inputs(model: Any, part: Clicks) -> tuple[dict[str, Any], Any]:
    named = part.columns | {"hist_movie": part.columns["history"]}
    names = dict.fromkeys(get_feature_names(model.dnn_feature_columns)) | dict.fromkeys(model.feature_index)
    return {name: named[name] for name in names}, part.columns["label"]
