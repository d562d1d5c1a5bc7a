"""Ranking of pairs in plain PyTorch: margins of triples, their gradient, and the hardest candidate.

The truth that the kernels are tested against; works for any device and any floating dtype.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import torch
from torch import Tensor

from slipstream.errors import UnsupportedOption
from slipstream.kernels.reference import check_range, computed


def margins(rows: Tensor) -> Tensor:
    """How far each user's score of the positive lies above that of the negative, [P].

    Args:
        rows: Those of user, positive and negative, [P, 3, D]: D - 1 factors, and last a bias. A score is the product
            of the factors plus the item's bias; the user's, in both scores, falls out.
    """
    user, better, worse = rows.unbind(1)
    difference = better - worse
    return (user[:, :-1] * difference[:, :-1]).sum(1) + difference[:, -1]


def margin_gradients(rows: Tensor, grad: Tensor) -> Tensor:
    """Gradient [P, 3, D] of the rows of :func:`margins`, of which ``grad`` [P] is the gradient."""
    user, better, worse = rows.unbind(1)
    factor = grad.unsqueeze(1).to(rows.dtype)
    of_user, of_better = (better - worse) * factor, user * factor
    of_user[:, -1:], of_better[:, -1:] = 0.0, factor
    return torch.stack([of_user, of_better, -of_better], dim=1)


def check_candidates(user_weight: Tensor, item_weight: Tensor, users: Tensor, items: Tensor) -> None:
    """Raise UnsupportedOption unless shapes, types and devices of the tables are those of :func:`hardest`."""
    if items.dim() != 2 or users.shape != items.shape[:1] or not items.shape[1]:
        raise UnsupportedOption(
            f"candidates are users [P] and items [P, K] with K > 0, not {tuple(users.shape)} and {tuple(items.shape)}"
        )
    if user_weight.dim() != 2 or user_weight.shape[1:] != item_weight.shape[1:] or not user_weight.shape[1]:
        shapes = f"{tuple(user_weight.shape)} and {tuple(item_weight.shape)}"
        raise UnsupportedOption(f"tables of users and items have rows of one size, not {shapes}")
    of_users, of_items = ((weight.dtype, weight.device) for weight in (user_weight, item_weight))
    if of_users != of_items:  # a kernel would read the other device's addresses
        raise UnsupportedOption(
            "tables of users and items have one type and device, "
            f"not {of_users[0]} on {of_users[1]} and {of_items[0]} on {of_items[1]}"
        )


def hardest(user_weight: Tensor, item_weight: Tensor, users: Tensor, items: Tensor) -> Tensor:
    """Of each user's candidates the item that scores highest, int64 [P]; see :func:`chosen`.

    Args:
        user_weight: Table of users [U, D], rows as those of :func:`margins`.
        item_weight: Table of items [I, D].
        users: int32 or int64 [P].
        items: int32 or int64 [P, K], K > 0.

    Raises:
        IndexOutOfRange: An id is outside its table.
        UnsupportedOption: Shapes do not belong together.
    """
    check_candidates(user_weight, item_weight, users, items)
    check_range(users, user_weight.shape[0], 0)
    check_range(items.reshape(-1), item_weight.shape[0], 1)
    dtype = computed(user_weight.dtype)
    user = user_weight.detach()[users.to(torch.int64)].to(dtype)
    rows = item_weight.detach()[items.to(torch.int64)].to(dtype)
    return chosen(items, (rows[..., :-1] * user[:, None, :-1]).sum(2) + rows[..., -1])


def chosen(items: Tensor, scores: Tensor) -> Tensor:
    """Of each row of ``items`` [P, K] the one of the highest of ``scores`` [P, K], int64 [P]; of equals the first.

    A score that is no number counts as infinite, so that the loss shows it.
    """
    scores = scores.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=float("-inf"))
    # argmax does not say which of equals it takes.
    places = (scores == scores.amax(1, keepdim=True)).to(torch.uint8).cumsum(1).eq(0).sum(1)
    return items.to(torch.int64).gather(1, places.unsqueeze(1)).squeeze(1)
