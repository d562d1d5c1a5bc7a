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
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from slipstream.embedding import blocks as of_blocks
from slipstream.embedding.blocks import Block
from slipstream.errors import UnsupportedOption
from slipstream.kernels import reference, registry
from slipstream.kernels.types import DrawnLookups, RowGradients, TableState

if TYPE_CHECKING:
    from slipstream.embedding.table import Table


class _Content:
    """What a row gradient and those detached from it hold together."""

    __slots__ = ("blocks", "dense", "scale", "summed")

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.dense: Tensor | None = None
        self.scale: float | Tensor = 1.0
        self.summed = 0


class RowGradient(Tensor):
    """Row gradients of one table, accumulated over the backward passes since the last ``zero_grad()``.

    ``detach()`` and ``.data`` are it once more: what is done to them is done to it, as with any gradient. Another dtype
    or device, which ``model.to(...)`` asks for, has the sum of each row, as torch's gradient would.

    Attributes:
        blocks: (forward pass with its output's gradient, features of it that read the table). Blocks may be shared with
            other row gradients; nobody changes them.
        dense: Gradient [R, D] from uses of the weight outside of lookups (a tied output layer), or None.
        scale: Factor on ``blocks``, from scaling and clipping; a scalar tensor where it was made on a GPU.
    """

    _table: weakref.ref[Table]
    _content: _Content

    @staticmethod
    def __new__(cls, table: Table, like: Tensor | None = None) -> RowGradient:
        """A tensor of the table's shape without memory of its own; its dtype and device are those of ``like``."""
        like = table.weight if like is None else like
        self = Tensor._make_wrapper_subclass(cls, table.weight.shape, dtype=like.dtype, device=like.device)
        # A weight owns its gradient where Python's collector cannot look: owning the table would keep both forever.
        self._table = weakref.ref(table)
        self._content = _Content()
        return self

    def __init__(self, table: Table, like: Tensor | None = None) -> None:
        """Empty row gradients of a table."""

    @property
    def blocks(self) -> list[Block]:
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

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """It once more; what is assigned, with a dtype and device of its own, takes its place."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, RowGradient):
            raise unsupported("assignment of a tensor to .data")
        cast(Any, Tensor.data).__set__(self, value)  # what torch sees of it: dtype and device
        self._content = value._content

    def start(self, block: RowGradients, features: tuple[int, ...], dense: Tensor | None) -> None:
        """Forget everything but one backward pass and a dense gradient."""
        content = self._content = _Content()  # what was detached in an earlier step has the other
        content.blocks, content.dense = [(block, features)], dense

    def add_block(self, block: RowGradients, features: tuple[int, ...]) -> None:
        """Add one backward pass."""
        self._append([(block, features)])

    def add(self, other: RowGradient, alpha: float = 1.0) -> RowGradient:
        """Add row gradients of the same table times a factor, in place."""
        mine = {id(block) for block, _ in self.blocks}
        later = [
            # The object is the identity of a backward pass: what is added to itself must not be taken for one.
            (replace(block) if id(block) in mine else block, of)
            for block, of in of_blocks.scaled(other.blocks, other.scale * float(alpha))
        ]
        if other.dense is not None:
            self.add_dense(other.dense, alpha)
        self._append(later)
        return self

    def add_dense(self, other: Tensor, alpha: float = 1.0) -> None:
        """Add a dense gradient [R, D] times a factor."""
        self.table.let_go()
        self.dense = other * alpha if self.dense is None else self.dense.add_(other, alpha=alpha)

    def _append(self, blocks: list[Block]) -> None:
        self.table.let_go()
        content = self._content
        if isinstance(content.scale, Tensor) or content.scale != 1.0:  # it is of what came before, not of what comes
            content.blocks = of_blocks.scaled(content.blocks, content.scale)
            content.scale = 1.0
        content.blocks += blocks
        # A table that no optimizer steps would keep every batch.
        if of_blocks.are_too_many(content.blocks, len(blocks), self.numel()) and self._may_be_summed():
            lookups = sum(of_blocks.num_lookups(block) for block in content.blocks)
            rows, sums = self._summed()
            content.blocks = [of_blocks.of_rows(rows, sums)]
            content.summed += lookups - len(rows)

    def _may_be_summed(self) -> bool:
        """Not where lookups are counted or drawn one by one, nor where nobody can wait for the number of rows."""
        table = self.table
        if table.by_sample or table.gate is not None or table.drawn_by() is not None:
            return False
        drawn = any(isinstance(block.lookups, DrawnLookups) for block, _ in self.blocks)
        return not (drawn or (self.is_cuda and torch.cuda.is_current_stream_capturing()))

    @property
    def summed(self) -> int:
        """Lookups that blocks no longer show, since they were summed up by row; none of them was skipped."""
        return self._content.summed

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
        rows, sums = self._summed(self.dtype)
        return rows, sums if isinstance(self.scale, float) and self.scale == 1.0 else sums.mul_(self.scale)

    def _summed(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        dtype = dtype or reference.computed(self.dtype)
        return of_blocks.summed(self.blocks, self.shape[1], dtype, self.device)

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
        other = RowGradient(self.table, self)
        other._content = self._content
        return other

    def copy(self) -> RowGradient:
        """The same row gradients in an object of its own."""
        other = RowGradient(self.table, self)
        content = other._content
        content.blocks, content.scale = list(self.blocks), self.scale
        content.dense = None if self.dense is None else self.dense.clone()
        return other

    def converted(self, dtype: torch.dtype, device: torch.device) -> RowGradient:
        """The sum of each row in another dtype and on another device.

        Raises:
            UnsupportedOption: The dtype is none of gradients.
        """
        if not dtype.is_floating_point:
            raise unsupported(f"conversion to {dtype}")
        rows, sums = self.to_rows()
        sums = sums.to(device, dtype)
        other = RowGradient(self.table, sums)
        if self.blocks:
            other._content.blocks = [of_blocks.of_rows(rows.to(device), sums)]
        other.dense = None if self.dense is None else self.dense.to(device, dtype)
        return other

    def share_memory_(self) -> RowGradient:
        """Nothing: there is no memory to share, and what a process accumulates is for its own optimizer."""
        return self

    def apply_(self, *_: Any) -> Any:
        """Refuse: torch would write to memory that there is none of."""
        raise unsupported("apply_")

    def __dlpack__(self, *_: Any, **__: Any) -> Any:
        """Refuse: there is no memory to hand out."""
        raise unsupported("DLPack")

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        """Name the table, None if it is gone, and what was accumulated."""
        table = self._table()
        name = None if table is None else table.name
        return f"RowGradient(table={name!r}, shape={tuple(self.shape)}, backward_passes={len(self.blocks)})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse: gradients are not saved."""
        raise UnsupportedOption("row gradients cannot be saved", remedy="call optimizer.zero_grad() before you save")

    def __deepcopy__(self, memo: dict[int, Any]) -> RowGradient:
        """A copy that still belongs to the same table."""
        return self.copy()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from slipstream.embedding.gradient_operators import HANDLERS  # of this class

        handler = HANDLERS.get(func)
        if handler is not None:
            return handler(*args, **(kwargs or {}))
        # Under torch.inference_mode() operators such as `to` come here before torch has taken them apart.
        result = func.decompose(*args, **(kwargs or {}))
        if result is NotImplemented:
            raise unsupported(func)
        return result


def unsupported(what: object) -> UnsupportedOption:
    """The error for what a row gradient cannot do."""
    return UnsupportedOption(
        f"{what} cannot be applied to the row gradient of a table",
        remedy="use slipstream.optim for optimizers, or call weight.grad.to_dense()",
    )
