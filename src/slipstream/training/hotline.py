"""Software Hotline: a step in which the popular part of a batch runs while the rows of the rest are gathered.

[paper] Hotline (ISCA 2024) splits each mini-batch into a popular micro-batch, whose rows are all on the accelerator and
which runs at once, and the rest, whose rows are gathered meanwhile by hardware of its own. Here the gathering is a copy
on a second stream: *software* Hotline, with no claim to the article's speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from slipstream.data.batch import Batch, Inputs
from slipstream.data.transfer import Sender
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
    model: _Scores,
    tables: CachedEmbeddingCollection,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Batch,
    *,
    following: Inputs | None = None,
    before_step: Callable[[], object] | None = None,
) -> HotlineStep:
    """One optimizer step on a batch in two micro-batches.

    Their losses count n_μ / n, so the gradient is the full batch's; only the order of its sums differs.

    Args:
        model: Has ``losses(batch)``, float32 [B] not weighted; reads its rows from ``tables``.
        tables: The cached tables, attached to one of the optimizers.
        optimizers: Stepped once.
        batch: n inputs in host memory.
        following: Inputs of the next step, whose rows are to come meanwhile.
        before_step: Called between the backward passes and the step: clipping.
    """
    popular = tables.resident(batch.inputs.ids, batch.inputs.bags)
    parts = [batch.select(mask) for mask in (popular, ~popular)]
    parts = [part for part in parts if len(part)]
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    sender = Sender(tables.cache.device, keep_ids=True)
    total: Tensor | None = None
    for number, part in enumerate(parts):
        if number + 1 < len(parts):
            rest = parts[number + 1].inputs
            tables.look_ahead(rest.ids, rest.bags, same_step=True)
        elif following is not None:
            tables.look_ahead(following.ids, following.bags)
        sent = sender.send(part)
        loss = (model.losses(sent) * sent.weights).sum() / len(batch)
        loss.backward()
        total = loss.detach() if total is None else total + loss.detach()
    if before_step is not None:
        before_step()
    for optimizer in optimizers:
        optimizer.step()
    assert total is not None, "an empty batch"
    return HotlineStep(total, float(popular.float().mean()))
