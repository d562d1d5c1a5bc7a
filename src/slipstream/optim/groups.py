"""Parameter groups.

Tables apart from dense parameters, since their learning rates want different schedules (DESIGN: decaying the tables'
rate starves rare rows).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from slipstream.embedding.cached import CachedEmbeddingCollection
from slipstream.embedding.collection import PlainEmbeddingCollection
from slipstream.embedding.convert import tables


def table_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The weights of all tables: ours, and those of torch's embedding modules."""
    found = {id(table.weight): table.weight for table in tables(model).values()}
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag | PlainEmbeddingCollection | CachedEmbeddingCollection):
            found |= {id(parameter): parameter for parameter in module.parameters()}
    return list(found.values())


def parameter_groups(model: nn.Module, lr: float, embedding_lr: float | None = None) -> list[dict[str, Any]]:
    """Two groups.

    ``{"params": dense, "lr": lr, "tables": False}`` and ``{"params": tables, "lr": embedding_lr or lr, "tables":
    True}``; an empty one is left out.
    """
    rows = table_parameters(model)
    known = {id(parameter) for parameter in rows}
    dense = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [
        {"params": dense, "lr": lr, "tables": False},
        {"params": rows, "lr": lr if embedding_lr is None else embedding_lr, "tables": True},
    ]
    return [group for group in groups if group["params"]]
