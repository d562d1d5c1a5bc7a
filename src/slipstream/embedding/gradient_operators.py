"""What torch's operators do to row gradients: those that training loops apply to gradients.

Where an operator takes several gradients, ordinary tensors may be among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from slipstream.embedding.row_gradient import RowGradient, unsupported

_aten = torch.ops.aten


def _to_copy(
    gradient: RowGradient, *, dtype: torch.dtype | None = None, device: torch.device | None = None, **_: Any
) -> RowGradient:
    dtype, device = dtype or gradient.dtype, device or gradient.device
    same = dtype == gradient.dtype and device == gradient.device
    return gradient.copy() if same else gradient.converted(dtype, device)


def _factor(value: Any) -> float | Tensor:
    """A number, or a scalar on a GPU, for which nobody waits."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise unsupported("multiplication by a tensor")
        return value.detach() if value.device.type != "cpu" else float(value.item())
    return float(value)


def _norm(gradient: Tensor, order: Any = 2, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Tensor:
    if isinstance(gradient, RowGradient):
        if order not in (2, 2.0):
            return torch.linalg.vector_norm(gradient.to_dense(), order)
        norm = gradient.squared_norm() ** 0.5
        return torch.as_tensor(norm, dtype=dtype or gradient.dtype, device=gradient.device)
    return torch.linalg.vector_norm(gradient, order, dtype=dtype)


def _each(action: Callable[[Tensor, Any], Any]) -> Callable[..., None]:
    """A foreach operator over lists that mix row gradients and ordinary tensors."""

    def handler(gradients: Sequence[Tensor], other: Any) -> None:
        others: Iterable[Any] = other if isinstance(other, list | tuple) else [other] * len(gradients)
        for gradient, value in zip(gradients, others, strict=True):
            action(gradient, value)

    return handler


def _mul_(gradient: Tensor, factor: Any) -> Tensor:
    if isinstance(gradient, RowGradient):
        return gradient.multiply(_factor(factor))
    if isinstance(factor, RowGradient):
        raise unsupported("multiplication of a tensor")
    return gradient.mul_(factor)


def _div_(gradient: Tensor, divisor: Any) -> Tensor:
    if isinstance(gradient, RowGradient):
        divisor = _factor(divisor)
        # Python refuses to divide by zero, torch does not.
        by_zero = isinstance(divisor, float) and divisor == 0.0
        return gradient.multiply(math.copysign(math.inf, divisor) if by_zero else 1.0 / divisor)
    if isinstance(divisor, RowGradient):
        raise unsupported("division of a tensor")
    return gradient.div_(divisor)


def _add_(gradient: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """Add row gradients, or what autograd adds: the gradient of a use outside of lookups, to what the lookups left."""
    if not isinstance(
        gradient, RowGradient
    ):  # torch.optim.SGD: it would work, by a pass over the table that nobody sees
        raise unsupported("adding to a tensor")
    if isinstance(other, RowGradient):
        if other.table is gradient.table:
            return gradient.add(other, alpha)
        other = other.to_dense()
    if isinstance(other, Tensor) and other.shape == gradient.shape:
        gradient.add_dense(other, alpha)
    elif _factor(other) != 0.0:  # sum() begins with 0
        raise unsupported("adding a number")
    return gradient


def _new(action: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operator whose result is a row gradient of its own."""

    def handler(gradient: Tensor, other: Any, **options: Any) -> Tensor:
        if not isinstance(gradient, RowGradient):
            raise unsupported("an operator of a tensor")
        return action(gradient.copy(), other, **options)

    return handler


def _unscale(gradients: Sequence[Tensor], found_inf: Tensor, inverse_scale: Tensor) -> None:
    """GradScaler: multiply by the inverse scale, and note whether anything was not finite."""
    plain = [gradient for gradient in gradients if not isinstance(gradient, RowGradient)]
    if plain:
        _aten._amp_foreach_non_finite_check_and_unscale_.default(plain, found_inf, inverse_scale)
    for gradient in gradients:
        if isinstance(gradient, RowGradient):
            found_inf.copy_(torch.maximum(found_inf, gradient.not_finite().to(found_inf)))
            gradient.multiply(_factor(inverse_scale))


def _foreach_norm(gradients: Sequence[Tensor], order: Any = 2, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [_norm(gradient, order, dtype=dtype) for gradient in gradients]


HANDLERS: dict[Any, Callable[..., Any]] = {
    _aten.mul_.Tensor: _mul_,
    _aten.mul_.Scalar: _mul_,
    _aten.div_.Tensor: _div_,
    _aten.div_.Scalar: _div_,
    _aten.add_.Tensor: _add_,
    _aten.mul.Tensor: _new(_mul_),
    _aten.mul.Scalar: _new(_mul_),
    _aten.div.Tensor: _new(_div_),
    _aten.div.Scalar: _new(_div_),
    _aten.add.Tensor: _new(_add_),
    _aten._to_copy.default: _to_copy,
    _aten.zero_.default: RowGradient.clear,
    _aten.detach.default: RowGradient.alias,
    _aten.clone.default: lambda gradient, **_: gradient.copy(),
    _aten.linalg_vector_norm.default: _norm,
    _aten._foreach_norm.Scalar: _foreach_norm,
    _aten._foreach_mul_.Scalar: _each(_mul_),
    _aten._foreach_mul_.Tensor: _each(_mul_),
    _aten._foreach_mul_.ScalarList: _each(_mul_),
    _aten._foreach_div_.Scalar: _each(_div_),
    _aten._foreach_zero_.default: lambda gradients: [gradient.zero_() for gradient in gradients] and None,
    _aten._amp_foreach_non_finite_check_and_unscale_.default: _unscale,
}
