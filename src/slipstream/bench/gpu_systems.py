"""Embedding tables under training on a GPU, ours and the peers'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.bench.gpu_workload import cold_gate
from slipstream.bench.systems import EPS, MissingPeer

LEARNING_RATE = 0.01
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Ours:
    """Our tables and one of our optimizers."""

    def __init__(
        self,
        rows: Sequence[int],
        dim: int,
        ids: list[Tensor],
        grads: list[Tensor],
        make: MakeOptimizer,
        device: torch.device,
    ) -> None:
        from slipstream.embedding import EmbeddingCollection, TableConfig

        tables = [TableConfig(f"c{i}", count, dim) for i, count in enumerate(rows)]
        self.collection = EmbeddingCollection(tables, device=device)
        self.optimizer, self.ids, self.grads = make(list(self.collection.parameters())), ids, grads

    def gate(self, rows: Sequence[int]) -> None:
        """Freeze the least popular rows."""
        for table, count in zip(self.collection.table_of.values(), rows, strict=True):
            table.set_gate(cold_gate(count, table.weight.device))

    def step(self, number: int) -> None:
        """Forward, backward, update."""
        self.collection(self.ids[number % len(self.ids)]).backward(self.grads[number % len(self.grads)])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class TorchTables:
    """``nn.EmbeddingBag`` a feature, with sparse or dense gradients, and one of torch's optimizers."""

    def __init__(
        self,
        rows: Sequence[int],
        dim: int,
        ids: list[Tensor],
        grads: list[Tensor],
        make: MakeOptimizer,
        *,
        sparse: bool = True,
    ) -> None:
        device = ids[0].device
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(count, dim, mode="sum", sparse=sparse, device=device) for count in rows
        )
        self.optimizer = make(list(self.tables.parameters()))
        self.ids = [[column.contiguous().long() for column in batch.T] for batch in ids]
        self.offsets = torch.arange(len(ids[0]), device=device)
        self.grads = [[part.contiguous() for part in grad.unbind(1)] for grad in grads]

    def step(self, number: int) -> None:
        """Forward, backward, update."""
        ids = self.ids[number % len(self.ids)]
        pooled = [table(column, self.offsets) for table, column in zip(self.tables, ids, strict=True)]
        torch.autograd.backward(pooled, self.grads[number % len(self.grads)])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class FbgemmTables:
    """FBGEMM's table-batched embeddings on the GPU, row-wise Adagrad fused into backward.

    Raises:
        MissingPeer: It is not installed.
    """

    def __init__(self, rows: Sequence[int], dim: int, ids: list[Tensor], grads: list[Tensor]) -> None:
        try:
            # A peer is not installed where types are checked.
            from fbgemm_gpu.split_embedding_configs import EmbOptimType  # pyright: ignore[reportMissingImports]
            from fbgemm_gpu.split_table_batched_embeddings_ops_common import (  # pyright: ignore[reportMissingImports]
                EmbeddingLocation,
            )
            from fbgemm_gpu.split_table_batched_embeddings_ops_training import (  # pyright: ignore[reportMissingImports]
                ComputeDevice,
                SplitTableBatchedEmbeddingBagsCodegen,
            )
        except (ImportError, OSError) as error:
            raise MissingPeer("fbgemm-gpu") from error
        if ids[0].device.type != "cuda":
            raise MissingPeer("fbgemm-gpu")
        self.tables: Any = SplitTableBatchedEmbeddingBagsCodegen(
            [(count, dim, EmbeddingLocation.DEVICE, ComputeDevice.CUDA) for count in rows],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=LEARNING_RATE,
            eps=EPS,
        )
        self.ids = [batch.T.contiguous().view(-1).long() for batch in ids]
        self.offsets = torch.arange(self.ids[0].numel() + 1, device=ids[0].device)
        self.grads = [grad.flatten(1) for grad in grads]

    def step(self, number: int) -> None:
        """Forward, and backward with the update in it."""
        pooled = self.tables(self.ids[number % len(self.ids)], self.offsets)
        pooled.backward(self.grads[number % len(self.grads)])
