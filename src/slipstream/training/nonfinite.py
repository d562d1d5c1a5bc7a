"""Losses and gradients that are no finite numbers: found before they reach a weight, and named."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from slipstream.data.batch import Batch
from slipstream.embedding.row_gradient import RowGradient
from slipstream.errors import NonFiniteError
from slipstream.models import Recommender

NAMED = 5
"""Samples named in a message."""
MOST_IN_A_ROW = 100
"""Batches left out one after the other before the training stops: then it is the model that is broken."""


def gradients_are_finite(model: nn.Module) -> bool:
    """Whether all gradients of the last backward pass are finite."""
    gradients = [gradient for _, gradient in _gradients(model)]
    # Sums are the quickest look at every number, and finite only if all are; one that is not may have overflowed.
    if not gradients or bool(torch.stack([gradient.sum() for gradient in gradients]).isfinite().all()):
        return True
    return all(bool(gradient.isfinite().all()) for gradient in gradients)


def _gradients(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Dense gradients, and those of the lookups' outputs [B, F, D], each once, with a parameter they are of."""
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is None:
            continue
        if type(gradient) is RowGradient:
            for block, _ in gradient.blocks:
                if id(block.grad) not in seen:
                    seen.add(id(block.grad))
                    yield name, block.grad
            if gradient.dense is not None:
                yield name, gradient.dense
        elif gradient.is_sparse:
            yield name, gradient._values()
        else:
            yield name, gradient


def nonfinite_error(model: Recommender, batch: Batch, what: str, step: int) -> NonFiniteError:
    """The error for a batch, with the samples at fault and the rows that the first of them looks up.

    Args:
        model: The model, with the gradients of the batch if there are any.
        batch: B samples.
        what: ``the loss is nan``, for example.
        step: Steps done before it.
    """
    with torch.no_grad():
        # Logits, since not every loss is of single samples. A rectifier may hide a value of the data from them, not
        # from the gradient.
        bad = ~model(batch.inputs).isfinite() | ~batch.inputs.dense.isfinite().all(1)
        if not bad.any():
            for _, gradient in _gradients(model):
                if gradient.dim() == 3 and len(gradient) == len(batch):
                    bad |= ~gradient.isfinite().flatten(1).all(1)
    rows = bad.nonzero().flatten().tolist()
    if not rows:
        held = {"gradient": _gradients(model), "weight": model.named_parameters()}
        wrong = [f"the {kind} of {name}" for kind in held for name, it in held[kind] if not bool(it.isfinite().all())]
        where = f"in no sample's logit or rows alone, but in {', '.join(wrong[:NAMED]) or 'the loss'}"
    else:
        named = ", ".join(str(int(batch.index[row])) for row in rows[:NAMED])
        more = ", …" if len(rows) > NAMED else ""
        first = batch.inputs.ids[rows[0]].tolist()
        looked_up = ", ".join(f"{name}={row}" for name, row in zip(model.feature_names, first, strict=False))
        where = f"from samples {named}{more} ({len(rows)} of the batch's {len(batch)}; rows of the first: {looked_up})"
    return NonFiniteError(
        f"{what} at step {step + 1}, {where}",
        remedy="lower the learning rates, mend the samples, or leave such batches out with --on-nonfinite skip",
    )
