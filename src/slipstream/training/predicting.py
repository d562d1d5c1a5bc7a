"""Predicting with a model in training or after it: what the loop, evaluation and the commands share."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slipstream.data.batch import Bag, Inputs
from slipstream.data.store import Store
from slipstream.data.transfer import Sender
from slipstream.embedding import CachedEmbeddingCollection, EmbeddingCollection
from slipstream.kernels.parallel import SlowPathWarning
from slipstream.models import Recommender
from slipstream.report.machine import WITHOUT_BF16, instructions

PREDICT_BATCH = 8192
"""Samples predicted at a time."""


def autocast(bf16: bool, device: str = "cpu") -> contextlib.AbstractContextManager[Any]:
    """Autocast to bfloat16 on a kind of device, or nothing. Says once if this processor has no products of bfloat16."""
    if not bf16:
        return contextlib.nullcontext()
    if device == "cpu":
        _say_slow_bf16()
    return torch.autocast(device, torch.bfloat16)


@cache
def _say_slow_bf16() -> None:
    found = instructions()
    if found in WITHOUT_BF16:
        warnings.warn(
            f"this processor ({found}) has no products of bfloat16 numbers: bf16 is slower than float32, often many"
            " times",
            SlowPathWarning,
            stacklevel=4,
        )


def set_table_dtype(model: Recommender, *, bf16: bool) -> None:
    """Has our tables hand out bfloat16 or float32 rows."""
    if isinstance(model.embeddings, EmbeddingCollection | CachedEmbeddingCollection):
        model.embeddings.out_dtype = torch.bfloat16 if bf16 else None


def labels_of(store: Store, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Labels of samples ``start`` to ``stop``, copied."""
    return store.labels[start:stop].numpy().astype(np.float32)


def predict_range(
    model: Recommender,
    store: Store,
    start: int,
    stop: int,
    *,
    bf16: bool = False,
    known: Sequence[int] | None = None,
    between: Callable[[], None] = lambda: None,
) -> Any:
    """Logits of samples ``start`` to ``stop``, float32 ``[stop - start]``; nothing is trained.

    Args:
        model: The model.
        store: The data.
        start: First sample.
        stop: First sample that is no longer predicted.
        bf16: Under autocast.
        known: Rows of each feature that the model has, where the data may have more: later ones count as row 0,
            out of vocabulary. None: the data has no others.
        between: Called before each batch; what it raises ends the prediction.
    """
    logits = np.empty(stop - start, dtype=np.float32)
    was_training, device = model.training, next(model.parameters()).device
    sender = Sender(device, keep_ids=isinstance(model.embeddings, CachedEmbeddingCollection))
    model.eval()
    with torch.inference_mode(), autocast(bf16, device.type):
        for at in range(start, stop, PREDICT_BATCH):
            between()
            batch = store.slice(at, min(at + PREDICT_BATCH, stop))
            # forward, not __call__: the compiled model is kept for the batch size it was compiled for.
            if known is not None:
                batch.inputs = known_inputs(batch.inputs, known)
            scores: Tensor = model.forward(sender.send(batch).inputs)
            logits[at - start : at - start + len(batch)] = scores.float().cpu().numpy()
    model.train(was_training)
    return logits


def known_inputs(inputs: Inputs, rows: Sequence[int]) -> Inputs:
    """The inputs with rows that the model does not have as row 0."""
    columns = inputs.ids.shape[1]
    limits = torch.tensor(rows[:columns], dtype=inputs.ids.dtype)
    bags = [
        Bag(bag.values.masked_fill(bag.values >= limit, 0), bag.offsets)
        for bag, limit in zip(inputs.bags, rows[columns:], strict=True)
    ]
    return Inputs(inputs.dense, inputs.ids.masked_fill(inputs.ids >= limits, 0), tuple(bags))
