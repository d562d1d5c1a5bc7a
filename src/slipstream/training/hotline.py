"""Software Hotline: a step in which the popular part of a batch runs while the rows of the rest are gathered.

[paper] Hotline (ISCA 2024) splits each mini-batch into a popular micro-batch, whose rows are all on the accelerator and
which runs at once, and the rest, whose rows are gathered meanwhile by hardware of its own. Here the gathering is a copy
on a second stream: *software* Hotline, with no claim to the article's speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from slipstream.data.batch import Batch, Inputs
from slipstream.embedding import CachedEmbeddingCollection


class _Scores(Protocol):
    def losses(self, batch: Batch) -> Tensor: ...


class HotlineStep(NamedTuple):
    """What a step did."""

    loss: Tensor
    """The batch's weighted mean loss, a scalar on the model's device."""
    popular_share: float
    """Share of the inputs in the popular micro-batch."""


def hotline_step(
    model: _Scores, tables: CachedEmbeddingCollection, optimizers: Sequence[torch.optim.Optimizer], batch: Batch
) -> HotlineStep:
    """One optimizer step on a batch in two micro-batches.

    Their losses count n_μ / n, so the gradient is the full batch's; only the order of its sums differs.

    Args:
        model: Has ``losses(batch)``, float32 [B] not weighted; reads its rows from ``tables``.
        tables: The cached tables, attached to one of the optimizers.
        optimizers: Stepped once.
        batch: n inputs in host memory.
    """
    popular = tables.resident(batch.inputs.ids, batch.inputs.bags)
    parts = [batch.select(mask) for mask in (popular, ~popular)]
    parts = [part for part in parts if len(part)]
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    total: Tensor | None = None
    for number, part in enumerate(parts):
        if number + 1 < len(parts):
            following = parts[number + 1].inputs
            tables.look_ahead(following.ids, following.bags, same_step=True)
        sent = _sent(part, tables.cache.device)
        loss = (model.losses(sent) * sent.weights).sum() / len(batch)
        loss.backward()
        total = loss.detach() if total is None else total + loss.detach()
    for optimizer in optimizers:
        optimizer.step()
    assert total is not None, "an empty batch"
    return HotlineStep(total, float(popular.float().mean()))


def _sent(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device but for its ids and bags, which the tables take in host memory."""
    if device.type == "cpu":
        return batch
    dense, labels, weights = (
        tensor.pin_memory().to(device, non_blocking=True)
        for tensor in (batch.inputs.dense, batch.labels, batch.weights)
    )
    return Batch(Inputs(dense, batch.inputs.ids, batch.inputs.bags), labels, batch.index, weights, batch.time)
