"""Blocks of a row gradient: a backward pass each, with those of its features that read the table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slipstream.kernels import reference
from slipstream.kernels.types import Lookups, RowGradients

Block = tuple[RowGradients, tuple[int, ...]]
"""A backward pass, and the features that read the table."""

_FEW = 8
"""Backward passes that are never too many."""
_OF_OBJECTS = 512
"""Numbers in the memory that a block takes beside its tensors' elements."""


def scaled(blocks: Sequence[Block], factor: float | Tensor) -> list[Block]:
    """The blocks times a factor; by a factor of 1 they are the same objects."""
    if isinstance(factor, float) and factor == 1.0:
        return list(blocks)
    return [(RowGradients(block.lookups, block.grad * factor, block.tables), of) for block, of in blocks]


def are_too_many(blocks: Sequence[Block], added: int, numbers: int) -> bool:
    """Whether blocks hold more than twice the numbers of a table.

    Args:
        blocks: The blocks.
        added: How many of them are new. So that many small ones are not counted over and over, they are counted each
            time when their number has doubled.
        numbers: R * D.
    """
    if len(blocks) < _FEW or len(blocks).bit_length() == (len(blocks) - added).bit_length():
        return False
    # Whole gradients, though other tables may read most of their features: they are all kept for this one, too.
    return sum(block.grad.numel() + _OF_OBJECTS for block, _ in blocks) > 2 * numbers


def num_lookups(block: Block) -> int:
    """Lookups of a block's features, padding left out."""
    backward, features = block
    found = ((reference.feature_lookups(backward.lookups, f)[0], backward.lookups.padding_of(f)) for f in features)
    return sum(int((rows != padding).sum()) for rows, padding in found)


def summed(blocks: Sequence[Block], dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The distinct rows of all lookups, int64 [U] in ascending order, and their gradients [U, D] in ``dtype``.

    The sum of a row's contributions is taken in the order of backward, so it is the same for any number of threads.
    """
    ids: list[Tensor] = []
    grads: list[Tensor] = []
    for block, features in blocks:
        for feature in features:
            rows, bags, factor = reference.feature_lookups(block.lookups, feature)
            used = rows != block.lookups.padding_of(feature)
            ids.append(rows[used])
            grad = block.grad[:, feature][bags].to(dtype) * factor.unsqueeze(1).to(dtype)
            grads.append(grad[used])
    if not ids:
        return torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, dim, dtype=dtype, device=device)
    distinct, places = torch.unique(torch.cat(ids).to(torch.int64), return_inverse=True)
    sums = torch.zeros(len(distinct), dim, dtype=dtype, device=device)
    return distinct, sums.index_add_(0, places, torch.cat(grads))


def of_rows(rows: Tensor, grads: Tensor) -> Block:
    """A block of rows int64 [U] and their gradients [U, D]."""
    return RowGradients(Lookups(rows.unsqueeze(1), None, 1), grads.unsqueeze(1), ()), (0,)
