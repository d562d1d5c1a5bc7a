"""TorchRec's fused ``EmbeddingBagCollection`` (FBGEMM's CPU kernels), row-wise Adagrad fused into backward.

Its documentation's ``apply_optimizer_in_backward`` on a sharded model ends in this kernel; on one machine without a
process group ``FusedEmbeddingBagCollection`` is that kernel directly. The dense part is plain torch with Adam, in
float32 or under bf16 autocast.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.peers.arrays import Arrays
from benchmarks.peers.dlrm import Batches, bf16, dense_part, predict
from benchmarks.peers.loops import Stepper
from benchmarks.peers.protocol import Job
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad


def versions() -> dict[str, str]:
    """Of the packages that do the work."""
    return {name: version(name) for name in ("torch", "torchrec", "fbgemm-gpu-cpu")}


def make(job: Job) -> TorchRec:
    """The contestant."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    return TorchRec(job)


class TorchRec(Stepper):
    """See the module.

    Args:
        job: ``settings``: dim, bottom, top, batch_size, lr (dense part, Adam), embedding_lr, bf16, compile.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        data, settings = Arrays.load(job.data), job.settings
        self.rows, self.batch_size, self.bf16 = sum(data.rows), int(settings["batch_size"]), bool(settings.get("bf16"))
        self.dim, self.names = settings["dim"], data.names
        tables = [
            EmbeddingBagConfig(name=name, embedding_dim=self.dim, num_embeddings=count, feature_names=[name])
            for name, count in zip(data.names, data.rows, strict=True)
        ]
        self.tables: Any = FusedEmbeddingBagCollection(
            tables,
            optimizer_type=RowWiseAdagrad,
            optimizer_kwargs={"lr": settings["embedding_lr"], "eps": 1e-8},
            device=torch.device("cpu"),
        )
        with torch.no_grad():
            for name, weight in self.tables.named_parameters():
                count = weight.shape[0]
                assert weight.shape[1] == self.dim, name
                weight.uniform_(-(count**-0.5), count**-0.5)
        self.dense, self.run_dense = dense_part(data, job)
        self.optimizer = torch.optim.Adam(self.dense.parameters(), lr=settings["lr"], fused=True)
        self.batches = Batches(data, job)

    def table_bytes(self) -> int:
        """Tables, and one float32 a row."""
        return sum(weight.nbytes for _, weight in self.tables.named_parameters()) + 4 * self.rows

    def rewind(self) -> None:
        """Begins anew."""
        self.batches.position = 0

    def next(self) -> tuple[Any, int]:
        """The next batch, its ids as TorchRec takes them."""
        batch, size = self.batches.next()
        if batch is None:
            return None, 0
        dense, ids, labels = batch
        return (dense, self._jagged(ids), labels), size

    def forward(self, batch: Any) -> Tensor:
        """Cross-entropy."""
        dense, jagged, labels = batch
        return nn.functional.binary_cross_entropy_with_logits(self._logits(dense, jagged, self.run_dense), labels)

    def update(self) -> None:
        """The dense part's step."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def scores(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Logits."""
        pieces = self.batches.pieces(start, stop)
        return predict(pieces, lambda dense, ids: self._logits(dense, self._jagged(ids), self.dense))

    def _jagged(self, ids: Tensor) -> KeyedJaggedTensor:
        lengths = torch.ones(ids.numel(), dtype=torch.int64)
        return KeyedJaggedTensor.from_lengths_sync(self.names, ids.reshape(-1), lengths)

    def _logits(self, dense: Tensor, jagged: KeyedJaggedTensor, part: Any) -> Tensor:
        pooled = self.tables(jagged)
        rows = pooled.values() if hasattr(pooled, "values") else pooled
        with bf16(self.bf16):
            return part(dense, rows.view(len(dense), len(self.names), self.dim)).float()
