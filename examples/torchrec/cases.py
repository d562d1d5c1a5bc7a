"""What the comparison needs of TorchRec: its models trained as its examples do, or with the recipe."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from examples.clicks import Clicks
from examples.compare import Outcome
from examples.torchrec.recipe import accelerate, features, train
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM

METRIC = "AUC"
LR = 1e-3
BATCH = 1024
NAMES = ["user", "movie", "history", "weekday"]


def _collection(rows: dict[str, int]) -> EmbeddingBagCollection:
    of = {"movie": ["movie", "history"]}
    return EmbeddingBagCollection(
        [
            EmbeddingBagConfig(name=name, embedding_dim=16, num_embeddings=size, feature_names=of.get(name, [name]))
            for name, size in rows.items()
        ]
    )


class _DeepFM(torch.nn.Module):
    """SimpleDeepFMNN gives probabilities; the comparison takes logits."""

    def __init__(self, rows: dict[str, int]) -> None:
        super().__init__()
        self.model = SimpleDeepFMNN(1, _collection(rows), hidden_layer_size=64, deep_fm_dimension=16)

    def forward(self, dense: Tensor, sparse: Any) -> Tensor:
        return torch.logit(self.model(dense, sparse), eps=1e-6)


MODELS = {"DLRM": lambda rows: DLRM(_collection(rows), 1, [64, 16], [64, 32, 1]), "DeepFM": _DeepFM}


def run(name: str, data: Clicks, test: Clicks | None, folder: Path, untouched: str | None, policy: Any) -> Outcome:
    """One epoch; ``untouched`` None: torch's Adam; ``policy`` None: a plain loop."""
    torch.manual_seed(0)
    model: Any = MODELS[name](data.rows)
    report = None
    began = time.perf_counter()
    optimizer = torch.optim.Adam(model.parameters(), LR) if untouched is None else accelerate(model, LR, untouched)
    if policy is not None:
        report = train(model, optimizer, _batches(data), NAMES, policy, BATCH)
    else:
        for batch in _batches(data):
            logits = model(batch["dense"], features(NAMES, batch)).squeeze(1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    seconds = time.perf_counter() - began
    if test is None:
        return Outcome(float("nan"), seconds, report)
    with torch.no_grad():
        scores = torch.cat([model(batch["dense"], features(NAMES, batch)).squeeze(1) for batch in _batches(test)])
    return Outcome(float(roc_auc_score(test.columns["label"], scores.numpy())), seconds, report)


def _batches(part: Clicks) -> Iterator[dict[str, Tensor]]:
    named = {name: torch.from_numpy(part.columns[name]) for name in [*NAMES, "label"]}
    named["dense"] = torch.from_numpy(part.columns["year"]).unsqueeze(1)
    named["number"] = torch.arange(len(part))
    for first in range(0, len(part), BATCH):
        yield {name: column[first : first + BATCH] for name, column in named.items()}
