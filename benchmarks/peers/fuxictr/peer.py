"""FuxiCTR's models in its own way: its layers, loader, dense Adam over everything, gradient clipping.

The package on PyPI has no models; ``examples/fuxictr/models.py`` assembles them from its layers. Its NPZ loader is
used (data in memory, no workers), which on one machine is the quicker of the two that it documents.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.peers.arrays import Arrays
from benchmarks.peers.loops import Stepper
from benchmarks.peers.protocol import Job
from examples.fuxictr import models
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader
from torch import Tensor, nn

MODELS = {"dlrm": models.DLRM, "dcnv2": models.DCNv2, "deepfm": models.DeepFM}
MAX_GRADIENT_NORM = 10.0
"""Of ``fit``, its default."""


def versions() -> dict[str, str]:
    """Of the packages that do the work."""
    return {name: version(name) for name in ("torch", "fuxictr")}


def make(job: Job) -> FuxiCTR:
    """The contestant."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    return FuxiCTR(job)


class FuxiCTR(Stepper):
    """See the module.

    Args:
        job: ``settings``: model, dim, hidden, batch_size, lr.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        settings, self.data = job.settings, Arrays.load(job.data)
        self.rows, self.batch_size = sum(self.data.rows), int(settings["batch_size"])
        self.dense_names = [f"dense{column}" for column in range(self.data.dense.shape[1])]
        self.folder = tempfile.TemporaryDirectory()
        fields = FeatureMap("peers", self.folder.name)
        for name, rows in zip(self.data.names, self.data.rows, strict=True):
            fields.features[name] = {"source": "", "type": "categorical", "vocab_size": rows}
        for name in self.dense_names:
            fields.features[name] = {"source": "", "type": "numeric"}
        fields.labels, fields.default_emb_dim = ["label"], settings["dim"]
        fields.num_fields = fields.get_num_fields()
        fields.set_column_index()
        self.model: Any = MODELS[settings["model"]](
            fields,
            embedding_dim=settings["dim"],
            hidden_units=list(settings["hidden"]),
            learning_rate=settings["lr"],
            optimizer="adam",
            loss="binary_cross_entropy",
            model_root=self.folder.name,
            metrics=["AUC"],
            verbose=0,
        )
        file = Path(self.folder.name) / "train.npz"
        np.savez(file, **self._columns(0, job.train[1]))
        self.loader = NpzDataLoader(fields, str(file), batch_size=self.batch_size, num_workers=0)
        file.unlink()
        self.iterator = iter(self.loader)

    def _columns(self, start: int, stop: int) -> dict[str, npt.NDArray]:
        ids, dense = self.data.ids[start:stop], self.data.dense[start:stop]
        columns: dict[str, npt.NDArray] = {name: ids[:, column] for column, name in enumerate(self.data.names)}
        columns |= {name: dense[:, column] for column, name in enumerate(self.dense_names)}
        return columns | {"label": self.data.labels[start:stop]}

    def table_bytes(self) -> int:
        """Tables and Adam's two moments; the dense gradient, as large as the tables, comes on top in a step."""
        tables = [p for name, p in self.model.named_parameters() if "embedding_layer" in name]
        state = (self.model.optimizer.state.get(p, {}) for p in tables)
        moments = sum(t.nbytes for entry in state for t in entry.values() if isinstance(t, Tensor) and t.dim())
        return sum(p.nbytes for p in tables) + moments

    def rewind(self) -> None:
        """Begins anew."""
        self.iterator = iter(self.loader)

    def next(self) -> tuple[Any, int]:
        """The next batch of its loader."""
        batch = next(self.iterator, None)
        return (None, 0) if batch is None else (batch, len(batch["label"]))

    def forward(self, batch: Any) -> Tensor:
        """Its loss, as its ``train_step`` computes it."""
        return self.model.compute_loss(self.model.forward(batch), self.model.get_labels(batch))

    def update(self) -> None:
        """Clipping and Adam, as its ``train_step`` does it."""
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.model.optimizer.step()
        self.model.optimizer.zero_grad()

    def scores(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Logits of its probabilities."""
        pieces = []
        self.model.eval()
        with torch.no_grad():
            for first in range(start, stop, 8192):
                columns = self._columns(first, min(first + 8192, stop))
                batch = {name: torch.from_numpy(np.array(column)) for name, column in columns.items()}
                probability = self.model.forward(batch)["y_pred"].reshape(-1).double()
                pieces.append(torch.logit(probability, eps=1e-9).float().numpy())
        self.model.train()
        return np.concatenate(pieces)
