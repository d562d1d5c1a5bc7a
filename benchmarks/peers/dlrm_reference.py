"""DLRM on plain torch as facebookresearch/dlrm trains it on a CPU: one sparse ``EmbeddingBag`` a feature.

``optimizer`` is ``sgd`` or ``adagrad``, over tables and dense part alike; ``bf16`` casts the dense part (Intel-style).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.peers.arrays import Arrays
from benchmarks.peers.dlrm import Batches, bf16, dense_part, predict
from benchmarks.peers.loops import Stepper
from benchmarks.peers.protocol import Job
from torch import Tensor, nn


def versions() -> dict[str, str]:
    """Of torch."""
    return {"torch": torch.__version__}


def make(job: Job) -> Reference:
    """The contestant."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    return Reference(job)


class Reference(Stepper):
    """See the module.

    Args:
        job: ``settings``: dim, bottom, top, batch_size, optimizer, lr, bf16, compile.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        data, settings = Arrays.load(job.data), job.settings
        self.rows, self.batch_size, self.bf16 = sum(data.rows), int(settings["batch_size"]), bool(settings.get("bf16"))
        dim = settings["dim"]
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(count, dim, mode="sum", sparse=True, _weight=_uniform(count, dim)) for count in data.rows
        )
        self.dense, self.run_dense = dense_part(data, job)
        optimizer = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}[settings["optimizer"]]
        self.optimizer: Any = optimizer([*self.tables.parameters(), *self.dense.parameters()], lr=settings["lr"])
        self.batches = Batches(data, job)

    def table_bytes(self) -> int:
        """Tables, and Adagrad's sums of squares."""
        weights = sum(weight.nbytes for weight in self.tables.parameters())
        state = (self.optimizer.state.get(weight, {}).get("sum") for weight in self.tables.parameters())
        return weights + sum(tensor.nbytes for tensor in state if tensor is not None)

    def rewind(self) -> None:
        """Begins anew."""
        self.batches.position = 0

    def next(self) -> tuple[Any, int]:
        """The next batch."""
        return self.batches.next()

    def forward(self, batch: Any) -> Tensor:
        """Cross-entropy."""
        dense, ids, labels = batch
        return nn.functional.binary_cross_entropy_with_logits(self._logits(dense, ids), labels)

    def update(self) -> None:
        """The optimizer's step."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def scores(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Logits."""
        return predict(self.batches.pieces(start, stop), lambda dense, ids: self._logits(dense, ids, self.dense))

    def _logits(self, dense: Tensor, ids: Tensor, part: Any = None) -> Tensor:
        offsets = torch.arange(ids.shape[1])
        rows = torch.stack([table(column, offsets) for table, column in zip(self.tables, ids, strict=True)], dim=1)
        with bf16(self.bf16):
            return (part or self.run_dense)(dense, rows).float()


def _uniform(rows: int, dim: int) -> Tensor:
    return torch.empty(rows, dim).uniform_(-(rows**-0.5), rows**-0.5)
