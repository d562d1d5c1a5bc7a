"""The gradient of a table: a tensor in name, lookups and the gradients of their outputs in fact.

Backward sets ``weight.grad`` to a :class:`RowGradient`. It has the shape, dtype and device of the table but no memory
of that size, and knows the operations that training
loops apply to gradients: scaling, norms, clipping, GradScaler's unscaling, adding up over several backward passes,
zeroing. So ``torch.nn.utils.clip_grad_norm_``,
``torch.amp.GradScaler`` and ``optimizer.zero_grad()`` work as with any parameter. An optimizer that does not know row
gradients gets a typed error.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slipstream.errors import UnsupportedOption
from slipstream.kernels import reference, registry
from slipstream.kernels.types import DrawnLookups, RowGradients, TableState

if TYPE_CHECKING:
    from slipstream.embedding.table import Table

_aten = torch.ops.aten


class _Content:
    """What a row gradient and those detached from it hold together."""

    __slots__ = ("blocks", "dense", "scale", "shared")

    def __init__(self) -> None:
        self.blocks: list[tuple[RowGradients, tuple[int, ...]]] = []
        self.dense: Tensor | None = None
        self.scale: float | Tensor = 1.0
        self.shared = False


class RowGradient(Tensor):
    """Row gradients of one table, accumulated over the backward passes since the last ``zero_grad()``.

    ``detach()`` and ``.data`` are it once more: what is done to them is done to it, as with any gradient.

    Attributes:
        blocks: (forward pass with its output's gradient, features of it that read the table).
        dense: Gradient [R, D] from uses of the weight outside of lookups (a tied output layer), or None.
        scale: Factor on ``blocks``, from scaling and clipping; a scalar tensor where it was made on a GPU.
    """

    _table: weakref.ref[Table]
    _content: _Content

    @staticmethod
    def __new__(cls, table: Table) -> RowGradient:
        """A tensor of the table's shape without memory of its own."""
        weight = table.weight
        self = Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype, device=weight.device)
        # A weight owns its gradient where Python's collector cannot look: owning the table would keep both forever.
        self._table = weakref.ref(table)
        self._content = _Content()
        return self

    def __init__(self, table: Table) -> None:
        """Empty row gradients of a table."""

    @property
    def blocks(self) -> list[tuple[RowGradients, tuple[int, ...]]]:
        """See above."""
        return self._content.blocks

    @property
    def dense(self) -> Tensor | None:
        """See above."""
        return self._content.dense

    @dense.setter
    def dense(self, value: Tensor | None) -> None:
        self._content.dense = value

    @property
    def scale(self) -> float | Tensor:
        """See above."""
        return self._content.scale

    @property
    def table(self) -> Table:
        """The table that they belong to.

        Raises:
            UnsupportedOption: It is gone, with the module that it was a part of.
        """
        table = self._table()
        if table is None:
            raise UnsupportedOption("the model of this gradient is gone", remedy="keep the model while you train")
        return table

    def start(self, block: RowGradients, features: tuple[int, ...], dense: Tensor | None) -> None:
        """Forget everything but one backward pass and a dense gradient."""
        content = self._content
        if content.shared:  # with what was detached in an earlier step
            content = self._content = _Content()
        content.blocks, content.scale, content.dense = [(block, features)], 1.0, dense

    def add_block(self, block: RowGradients, features: tuple[int, ...]) -> None:
        """Add one backward pass."""
        content = self._content
        scale = content.scale
        if isinstance(scale, Tensor) or scale != 1.0:  # it holds for what came before, not for what comes
            content.blocks = [(_scaled(earlier, scale), of) for earlier, of in content.blocks]
            content.scale = 1.0
        content.blocks.append((block, features))

    def for_table(self, position: int) -> list[RowGradients]:
        """The blocks with this table at ``position`` and every other feature left out."""
        return [
            RowGradients(
                block.lookups, block.grad, tuple(position if f in of else -1 for f in range(block.lookups.num_features))
            )
            for block, of in self.blocks
        ]

    def dropped(self) -> int:
        """Lookups that were not drawn (a GPU counts them itself: 0)."""
        return sum(
            block.lookups.dropped[feature]
            for block, features in self.blocks
            if isinstance(block.lookups, DrawnLookups)
            for feature in features
        )

    def to_dense(self) -> Tensor:
        """The gradient [R, D] that torch would have made."""
        dense = reference.row_gradient_dense(self.for_table(0), 0, self.table.weight.detach(), self.scale)
        return dense if self.dense is None else dense.add_(self.dense)

    def to_rows(self) -> tuple[Tensor, Tensor]:
        """The distinct rows of the lookups, int64 [U] in ascending order, and their gradients [U, D].

        Not those of uses outside of lookups (``dense``). The sum of a row's contributions is taken in the order of
        backward, so it is the same for any number of threads.
        """
        weight = self.table.weight
        ids: list[Tensor] = []
        grads: list[Tensor] = []
        for block, features in self.blocks:
            for feature in features:
                rows, bags, factor = reference.feature_lookups(block.lookups, feature)
                used = rows != block.lookups.padding_of(feature)
                ids.append(rows[used])
                grad = block.grad[:, feature][bags].to(weight.dtype) * factor.unsqueeze(1).to(weight.dtype)
                grads.append(grad[used])
        if not ids:
            return weight.new_empty(0, dtype=torch.int64), weight.new_empty(0, weight.shape[1])
        distinct, places = torch.unique(torch.cat(ids).to(torch.int64), return_inverse=True)
        sums = weight.new_zeros(len(distinct), weight.shape[1]).index_add_(0, places, torch.cat(grads))
        return distinct, sums if isinstance(self.scale, float) and self.scale == 1.0 else sums.mul_(self.scale)

    def squared_norm(self) -> float | Tensor:
        """Sum of squares of the gradient, each row's contributions added up first; on a GPU a scalar tensor."""
        if self.dense is not None:
            square = self.to_dense().double().square().sum()
            return float(square) if square.device.type == "cpu" else square
        if not self.blocks:
            return 0.0
        state = TableState(self.table.weight.detach(), scale=self.scale)
        return registry.squared_norms([state], self.for_table(0))[0]

    def not_finite(self) -> Tensor:
        """A bool scalar on the gradient's device: whether an element of the outputs' gradients is NaN or infinite."""
        parts = [block.grad[:, list(of)] for block, of in self.blocks] + ([] if self.dense is None else [self.dense])
        found = [~torch.isfinite(part).all() for part in parts]
        return torch.stack(found).any() if found else torch.zeros((), dtype=torch.bool, device=self.device)

    def multiply(self, factor: float | Tensor) -> RowGradient:
        """Scale in place."""
        self._content.scale = self.scale * factor
        if self.dense is not None:
            self.dense.mul_(factor)
        return self

    def clear(self) -> RowGradient:
        """Zero in place."""
        content = self._content
        content.blocks, content.dense, content.scale = [], None, 1.0
        return self

    def alias(self) -> RowGradient:
        """Another object for the same row gradients."""
        other = RowGradient(self.table)
        other._content = self._content
        self._content.shared = True
        return other

    def copy(self) -> RowGradient:
        """The same row gradients in an object of its own."""
        other = RowGradient(self.table)
        content = other._content
        content.blocks, content.scale = list(self.blocks), self.scale
        content.dense = None if self.dense is None else self.dense.clone()
        return other

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        """Name the table and what was accumulated."""
        return f"RowGradient(table={self.table.name!r}, shape={tuple(self.shape)}, backward_passes={len(self.blocks)})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse: gradients are not saved."""
        raise UnsupportedOption("row gradients cannot be saved", remedy="call optimizer.zero_grad() before you save")

    def __deepcopy__(self, memo: dict[int, Any]) -> RowGradient:
        """A copy that still belongs to the same table."""
        return self.copy()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = _HANDLERS.get(func)
        if handler is None:
            raise _unsupported(func)
        return handler(*args, **(kwargs or {}))


def _converted(*_: Any, **__: Any) -> Tensor:
    raise UnsupportedOption(
        "the row gradient of a table cannot change its dtype or device",
        remedy="call optimizer.zero_grad() before model.to(...), or weight.grad.to_dense()",
    )


def _unsupported(what: object) -> UnsupportedOption:
    return UnsupportedOption(
        f"{what} cannot be applied to the row gradient of a table",
        remedy="use slipstream.optim for optimizers, or call weight.grad.to_dense()",
    )


def _scaled(block: RowGradients, factor: float | Tensor) -> RowGradients:
    return RowGradients(block.lookups, block.grad * factor, block.tables)


def _factor(value: Any) -> float | Tensor:
    """A number, or a scalar on a GPU, for which nobody waits."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise _unsupported("multiplication by a tensor")
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
    return gradient.multiply(_factor(factor)) if isinstance(gradient, RowGradient) else gradient.mul_(factor)


def _div_(gradient: Tensor, divisor: Any) -> Tensor:
    return gradient.multiply(1.0 / _factor(divisor)) if isinstance(gradient, RowGradient) else gradient.div_(divisor)


def _add_(gradient: Tensor, other: Tensor, *, alpha: float = 1) -> Tensor:
    """Autograd adds the gradient of a use outside of lookups to what the lookups left."""
    if not isinstance(
        gradient, RowGradient
    ):  # torch.optim.SGD: it would work, by a pass over the table that nobody sees
        raise _unsupported("adding to a tensor")
    dense = other.to_dense() if isinstance(other, RowGradient) else other
    gradient.dense = dense * alpha if gradient.dense is None else gradient.dense.add_(dense, alpha=alpha)
    return gradient


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


_HANDLERS: dict[Any, Callable[..., Any]] = {
    _aten.mul_.Tensor: _mul_,
    _aten.mul_.Scalar: _mul_,
    _aten.div_.Tensor: _div_,
    _aten.div_.Scalar: _div_,
    _aten.add_.Tensor: _add_,
    _aten.mul.Tensor: lambda gradient, factor: _mul_(gradient.copy(), factor),
    _aten._to_copy.default: _converted,
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
