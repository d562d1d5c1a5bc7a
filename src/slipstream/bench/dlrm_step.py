"""A DLRM training step on ready batches: what ``limit``, ``scale`` and ``profile_step`` measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from slipstream.bench import workload
from slipstream.data.batch import Inputs
from slipstream.data.schema import FeatureInfo
from slipstream.models import DLRM, DLRMConfig

NUM_DENSE = 13
LEARNING_RATE = 0.01


def rowwise_adagrad(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the benchmarks' DLRM, for dense part and tables, as a training makes it."""
    from slipstream.training.config import OptimizerConfig
    from slipstream.training.optimizers import build_optimizers

    (optimizer,) = build_optimizers(model, OptimizerConfig(name="rowwise_adagrad", lr=LEARNING_RATE), "slipstream")
    return optimizer


def features_of(rows: Sequence[int]) -> list[FeatureInfo]:
    """One-hot features of so many rows each."""
    return [FeatureInfo(name=f"c{i}", num_rows=count) for i, count in enumerate(rows)]


class Training:
    """Our DLRM in training on random batches with Zipf ids; labels are noise, so it learns nothing.

    Args:
        rows: Rows of each of F tables.
        batches: int32 [B, F] each, taken in turn.
        config: The model; the default is the Criteo Kaggle configuration.
        bf16: Forward and backward pass under bfloat16 autocast and ``torch.compile``.
        num_dense: Dense columns.
        weights: Ready tables by name ``c0`` …, float32 [R, D].
        seed: Of weights, dense values and labels.
    """

    def __init__(
        self,
        rows: Sequence[int],
        batches: Sequence[Tensor],
        *,
        config: DLRMConfig | None = None,
        bf16: bool = False,
        num_dense: int = NUM_DENSE,
        weights: dict[str, Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        from slipstream.embedding import EmbeddingCollection, TableConfig

        torch.manual_seed(seed)
        config = config or DLRMConfig()
        tables = [TableConfig(f"c{i}", count, config.embedding_dim) for i, count in enumerate(rows)]
        collection = EmbeddingCollection(tables, weights=weights)
        self.model = DLRM(features_of(rows), num_dense, config, collection)
        self.collection, self.bf16 = collection, bf16
        self.forward: Callable[[Inputs], Tensor] = torch.compile(self.model) if bf16 else self.model
        self.optimizer = rowwise_adagrad(self.model)
        size = len(batches[0])
        self.inputs = [Inputs(torch.randn(size, num_dense), ids, ()) for ids in batches]
        self.labels = [torch.randint(2, (size,)).float() for _ in batches]

    def step(self, number: int) -> None:
        """Forward, backward, update."""
        number %= len(self.inputs)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.forward(self.inputs[number])
        loss = nn.functional.binary_cross_entropy_with_logits(logits, self.labels[number])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def embedding_step(self, number: int) -> None:
        """The same batch's lookup, row gradients and row update alone; the gradient is that of a sum."""
        rows = self.collection(self.inputs[number % len(self.inputs)].ids)
        rows.backward(torch.ones_like(rows))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def kaggle_batches(total: int, *, batches: int, seed: int = 0) -> tuple[tuple[int, ...], list[Tensor]]:
    """Criteo Kaggle's tables scaled to ``total`` rows, and batches of Zipf ids."""
    rows = workload.cardinalities(total)
    return rows, workload.zipf_batches(rows, batches=batches, seed=seed)
