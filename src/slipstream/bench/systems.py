"""Embedding tables under training, ours and the peers', each fed in the layout it likes best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from slipstream.errors import ConfigError

EPS = 1e-8
"""Of every optimizer of these benchmarks, ours and the peers'."""


class MissingPeer(ConfigError):
    """A system to compare with is not installed; the ratio against it is left out of the record."""

    def __init__(self, peer: str) -> None:
        super().__init__(f"{peer} is not installed", remedy="install the peers with `make env-bench`")


class System(Protocol):
    """F tables of one dimension under training."""

    def step(self, number: int) -> object:
        """Forward, backward and update on batch ``number`` (modulo the number of batches)."""
        ...

    def weights(self) -> list[Tensor]:
        """The F tables, float32 [R, D] each; changing them in place changes the system."""
        ...


def fill(system: System, *, seed: int = 0) -> None:
    """Set all weights to uniform draws in ±1/√rows, the same for every system of the same seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in system.weights():
            weight.uniform_(-(weight.shape[0] ** -0.5), weight.shape[0] ** -0.5, generator=generator)


class Fbgemm:
    """FBGEMM's table-batched embeddings on the CPU, row-wise Adagrad fused into backward.

    Args:
        rows: Rows of each of F tables.
        dim: D.
        batches: int32 [B, F] each.
        grads: float32 [B, F * D] each: gradients of the output, taken in turn.
        lr: Learning rate.
        index_dtype: Of ids and offsets.

    Raises:
        MissingPeer: If fbgemm-gpu-cpu is not installed.
    """

    def __init__(
        self,
        rows: Sequence[int],
        dim: int,
        batches: Sequence[Tensor],
        grads: Sequence[Tensor],
        *,
        lr: float = 0.01,
        index_dtype: torch.dtype = torch.int64,
    ) -> None:
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
            raise MissingPeer("fbgemm-gpu-cpu") from error
        self.tables: Any = SplitTableBatchedEmbeddingBagsCodegen(
            [(count, dim, EmbeddingLocation.HOST, ComputeDevice.CPU) for count in rows],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=lr,
            eps=EPS,
        )
        # Its own layout, prepared outside the measurement: ids feature by feature, one offset a bag.
        self.ids = [batch.T.contiguous().view(-1).to(index_dtype) for batch in batches]
        self.offsets = torch.arange(self.ids[0].numel() + 1, dtype=index_dtype)
        self.grads = grads

    def step(self, number: int) -> None:
        """Forward, and backward with the update in it."""
        pooled = self.tables(self.ids[number % len(self.ids)], self.offsets)
        pooled.backward(self.grads[number % len(self.grads)])

    def weights(self) -> list[Tensor]:
        """The tables."""
        return self.tables.split_embedding_weights()


class Torch:
    """One ``nn.EmbeddingBag(sparse=True)`` a feature and one of torch's optimizers that take sparse gradients.

    Args:
        rows: Rows of each of F tables.
        dim: D.
        batches: int32 [B, F] each.
        grads: float32 [B, F * D] each: gradients of the output, taken in turn.
        optimizer: Makes the optimizer from the parameters.
    """

    def __init__(
        self,
        rows: Sequence[int],
        dim: int,
        batches: Sequence[Tensor],
        grads: Sequence[Tensor],
        *,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    ) -> None:
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(count, dim, mode="sum", sparse=True, _weight=torch.zeros(count, dim)) for count in rows
        )
        self.optimizer = optimizer(list(self.tables.parameters()))
        self.ids = [[column.contiguous().long() for column in batch.T] for batch in batches]
        self.offsets = torch.arange(batches[0].shape[0])
        self.grads = [list(grad.view(len(grad), len(rows), dim).unbind(1)) for grad in grads]

    def step(self, number: int) -> None:
        """Forward, backward, ``optimizer.step``."""
        ids = self.ids[number % len(self.ids)]
        pooled = [table(column, self.offsets) for table, column in zip(self.tables, ids, strict=True)]
        torch.autograd.backward(pooled, self.grads[number % len(self.grads)])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> list[Tensor]:
        """The tables."""
        return [parameter.data for parameter in self.tables.parameters()]


class Slipstream:
    """Our ``EmbeddingCollection`` and one of our optimizers.

    Args:
        rows: Rows of each of F tables.
        dim: D.
        batches: int32 [B, F] each.
        grads: float32 [B, F * D] each: gradients of the output, taken in turn.
        optimizer: Makes the optimizer from the parameters.
    """

    def __init__(
        self,
        rows: Sequence[int],
        dim: int,
        batches: Sequence[Tensor],
        grads: Sequence[Tensor],
        *,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    ) -> None:
        from slipstream.embedding import EmbeddingCollection, TableConfig

        self.collection = EmbeddingCollection([TableConfig(f"c{i}", count, dim) for i, count in enumerate(rows)])
        self.optimizer = optimizer(list(self.collection.parameters()))
        self.ids = list(batches)
        self.grads = [grad.view(len(grad), len(rows), dim) for grad in grads]

    def step(self, number: int) -> None:
        """Forward, backward, ``optimizer.step``."""
        pooled = self.collection(self.ids[number % len(self.ids)])
        pooled.backward(self.grads[number % len(self.grads)])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> list[Tensor]:
        """The tables."""
        return [parameter.data for parameter in self.collection.parameters()]
