"""Gradient clipping that counts row gradients, all tables in one kernel call."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from slipstream.embedding.row_gradient import RowGradient
from slipstream.errors import SlipstreamError
from slipstream.kernels import registry
from slipstream.kernels.types import Rule, TableState, UpdateSettings
from slipstream.optim.plan import joined


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, *, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale gradients so that their joint 2-norm is at most ``max_norm``.

    Like ``torch.nn.utils.clip_grad_norm_``, which also works, but with one kernel call for all tables. A row that
    several lookups touched counts with the sum of their gradients, as in a dense gradient.

    Args:
        parameters: Dense parameters and tables.
        max_norm: Largest norm allowed.
        error_if_nonfinite: Raise when the norm is NaN or infinite.

    Returns:
        The norm before clipping, a float32 scalar.

    Raises:
        SlipstreamError: The norm is not finite and ``error_if_nonfinite`` is set.
    """
    grads = [p.grad for p in ([parameters] if isinstance(parameters, Tensor) else parameters) if p.grad is not None]
    rows = [grad for grad in grads if isinstance(grad, RowGradient)]
    square = sum(float(torch.linalg.vector_norm(grad)) ** 2 for grad in grads if not isinstance(grad, RowGradient))
    square += sum(rows_squared_norms(rows))
    norm = square**0.5
    if error_if_nonfinite and not norm < float("inf"):
        raise SlipstreamError(
            f"the norm of the gradients is {norm}", remedy="lower the learning rate, or look at the data"
        )
    factor = max_norm / (norm + 1e-6)
    if factor < 1.0 or norm != norm:
        for grad in grads:
            grad.mul_(factor)
    return torch.tensor(norm)


def rows_squared_norms(gradients: list[RowGradient]) -> list[float]:
    """Sum of squares of each table's gradient; tables of one row size in one kernel call."""
    result = {id(gradient): gradient.squared_norm() for gradient in gradients if gradient.dense is not None}
    by_shape: dict[tuple[int, torch.dtype, torch.device], list[RowGradient]] = {}
    for gradient in gradients:
        if gradient.dense is None and gradient.blocks:
            by_shape.setdefault((gradient.shape[1], gradient.dtype, gradient.device), []).append(gradient)
    for batch in by_shape.values():
        states = [TableState(gradient.table.weight.detach(), scale=gradient.scale) for gradient in batch]
        counts = registry.row_update(states, joined(batch), UpdateSettings(Rule.NORM))
        result |= {id(gradient): norm for gradient, norm in zip(batch, counts.squared_norm, strict=True)}
    return [result.get(id(gradient), 0.0) for gradient in gradients]
