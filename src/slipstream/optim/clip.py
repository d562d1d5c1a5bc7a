"""Gradient clipping that counts row gradients, all tables in one kernel call."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from slipstream.embedding.row_gradient import RowGradient
from slipstream.errors import SlipstreamError
from slipstream.kernels import registry
from slipstream.kernels.types import TableState
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
    dense = [torch.linalg.vector_norm(grad) for grad in grads if not isinstance(grad, RowGradient)]
    norm = _joint_norm(dense, rows_squared_norms(rows))
    if error_if_nonfinite and not float(norm) < float("inf"):
        raise SlipstreamError(
            f"the norm of the gradients is {float(norm)}", remedy="lower the learning rate, or look at the data"
        )
    if isinstance(norm, Tensor):  # on a GPU: nobody waits to see whether there is anything to do
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0).float()
        for grad in grads:
            grad.mul_(factor.to(grad.device, non_blocking=True))
        return norm.float()
    factor = max_norm / (norm + 1e-6)
    if factor < 1.0 or norm != norm:
        for grad in grads:
            grad.mul_(factor)
    return torch.tensor(norm)


def _joint_norm(norms: list[Tensor], squares: Sequence[float | Tensor]) -> float | Tensor:
    """The norm of everything; a tensor where a part is on a GPU."""
    device = next((part.device for part in [*norms, *squares] if isinstance(part, Tensor) and part.is_cuda), None)
    if device is None:
        return float(sum(float(norm) ** 2 for norm in norms) + sum(float(square) for square in squares)) ** 0.5
    parts = [norm.double().square() for norm in norms] + [torch.as_tensor(square) for square in squares]
    return torch.stack([part.to(device, torch.float64, non_blocking=True) for part in parts]).sum().sqrt()


def rows_squared_norms(gradients: list[RowGradient]) -> list[float | Tensor]:
    """Sum of squares of each table's gradient; tables of one row size in one kernel call."""
    result: dict[int, float | Tensor] = {
        id(gradient): gradient.squared_norm() for gradient in gradients if gradient.dense is not None
    }
    by_shape: dict[tuple[int, torch.dtype, torch.device], list[RowGradient]] = {}
    for gradient in gradients:
        if gradient.dense is None and gradient.blocks:
            by_shape.setdefault((gradient.shape[1], gradient.dtype, gradient.device), []).append(gradient)
    for batch in by_shape.values():
        states = [TableState(gradient.table.weight.detach(), scale=gradient.scale) for gradient in batch]
        norms = registry.squared_norms(states, joined(batch))
        result |= {id(gradient): norm for gradient, norm in zip(batch, norms, strict=True)}
    return [result.get(id(gradient), 0.0) for gradient in gradients]
