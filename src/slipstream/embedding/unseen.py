"""What would lose a table's gradient without a word: whoever waits for it where autograd delivers dense gradients.

Row gradients are left on the table's parameter by the lookup's backward, past autograd's own accumulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from slipstream.errors import UnsupportedOption

if TYPE_CHECKING:
    from slipstream.embedding.table import Table


def refuse_other_weights(weights: Sequence[Tensor], tables: Sequence[Table]) -> None:
    """Raise UnsupportedOption if a weight [R, D] that wants a gradient is not its table's parameter.

    It is computed then (a parametrization, ``nn.utils.prune``, ``spectral_norm``), or another in its place
    (``torch.func.functional_call``). What ``torch.export`` puts there is no tensor of a plain type, and wants none.
    """
    for weight, table in zip(weights, tables, strict=False):
        other = weight is not table.weight and type(weight) in (Tensor, nn.Parameter)
        if other and weight.requires_grad and torch.is_grad_enabled():
            raise UnsupportedOption(
                f"table {table.name!r} is looked up by a weight that is not its parameter: parametrized, pruned, or "
                "put there by functional_call; row gradients reach the parameter only",
                remedy="keep torch's module for this table, or take slipstream.export.to_plain(model)",
            )


def refuse_ddp(tables: Sequence[Table]) -> None:
    """Raise UnsupportedOption inside the forward pass of a DistributedDataParallel that is to average these tables."""
    outer = getattr(DistributedDataParallel, "_active_ddp_module", None)  # private: torch may rename it
    if outer is None or not outer.training:
        return
    averaged = {id(parameter) for parameter in getattr(outer, "_module_parameters", ())}
    for table in tables:
        if table.weight.requires_grad and id(table.weight) in averaged:
            raise UnsupportedOption(
                f"DistributedDataParallel does not see the row gradients of table {table.name!r}, and each rank would "
                "train a table of its own",
                remedy="use slipstream.distributed.data_parallel(model), and exchange(model) before each step",
            )


def refuse_transforms(error: RuntimeError) -> None:
    """Raise UnsupportedOption if a lookup failed inside a transform of ``torch.func`` (``vmap``, say)."""
    if torch._C._are_functorch_transforms_active():  # pyright: ignore[reportPrivateUsage]
        raise UnsupportedOption(
            "torch.func's transforms cannot go through a lookup with row gradients",
            remedy="transform slipstream.export.to_plain(model), or look rows up outside",
        ) from error


def refuse_hooks(name: str) -> NoReturn:
    """Raise UnsupportedOption: the weight of a table has hooks for its gradient, and nothing calls them."""
    raise UnsupportedOption(
        f"the weight of table {name!r} has a hook for its gradient, which row gradients do not pass",
        remedy="remove it; to keep rows from training set their gates (table.open_gate()[rows] = 0), to change or "
        "log gradients use weight.grad after backward",
    )
