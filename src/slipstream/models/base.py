"""What all models share: the tables they make, and the loss they are trained with.

Letters of the shapes: ``B`` samples, ``N`` sparse features (one-hot first, then multi-hot), ``D`` elements of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from slipstream.data.batch import Batch, Inputs
from slipstream.data.schema import FeatureInfo
from slipstream.embedding import (
    CachedEmbeddingCollection,
    EmbeddingCollection,
    PlainEmbeddingCollection,
    PulledEmbeddingCollection,
    TableConfig,
)
from slipstream.errors import ConfigError
from slipstream.kernels import registry

Engine = Literal["slipstream", "torch", "xdl"]
"""Whose tables: ours, ``nn.EmbeddingBag(sparse=True)`` as the reference, or XDL-style ones."""


_TABLES = {"slipstream": EmbeddingCollection, "torch": PlainEmbeddingCollection, "xdl": PulledEmbeddingCollection}


class RowCacheOptions(NamedTuple):
    """Tables in host memory with the rows in use on a card."""

    budget_bytes: int
    """Memory of the card for rows and their optimizer state."""
    state_elements: int
    """Elements of optimizer state a row."""
    device: torch.device
    """The card."""


Widths = Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], Field(max_length=64)]
"""Widths of the hidden layers of an MLP, input side first."""


class ModelConfigBase(BaseModel):
    """Settings of every model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding_dim: int = Field(default=16, ge=1, le=4096)
    """Elements of a row, D."""
    init: Literal["uniform", "normal"] = "uniform"
    """How rows begin: uniform in ±1/sqrt(rows), as DLRM does, or normal."""
    init_std: float = Field(default=0.01, ge=0.0, allow_inf_nan=False)
    """Standard deviation of ``normal``."""
    pooling: Literal["sum", "mean"] = "mean"
    """How the rows of a multi-hot feature become one."""


def make_embeddings(
    features: Sequence[FeatureInfo],
    config: ModelConfigBase,
    engine: Engine = "slipstream",
    cache: RowCacheOptions | None = None,
) -> EmbeddingCollection | PlainEmbeddingCollection | CachedEmbeddingCollection:
    """One table for each feature.

    Args:
        features: The features, one-hot ones first.
        config: Row size and initialisation.
        engine: Whose tables.
        cache: Keep ours in host memory.

    Raises:
        ConfigError: There is no feature.
    """
    if not features:
        raise ConfigError("a model needs at least one sparse feature")
    tables = [
        TableConfig(name, feature.num_rows, config.embedding_dim, config.init, config.init_std)
        for name, feature in zip(_table_names(features), features, strict=True)
    ]
    multi_hot = [table.name for table, feature in zip(tables, features, strict=True) if feature.multi_hot]
    if cache is not None:
        return CachedEmbeddingCollection(tables, multi_hot=multi_hot, pooling=config.pooling, **cache._asdict())
    kind = _TABLES[engine]
    return kind(tables, multi_hot=multi_hot, pooling=config.pooling)


def _table_names(features: Sequence[FeatureInfo]) -> list[str]:
    """Names without dots, which ``state_dict`` keys cannot hold: ``a_b`` for ``a.b``, ``a_b_`` if that is taken."""
    taken = {feature.name for feature in features}
    names: list[str] = []
    for feature in features:
        name = feature.name
        if "." in name:
            name = name.replace(".", "_")
            while name in taken:
                name += "_"
            taken.add(name)
        names.append(name)
    return names


class Vectors(NamedTuple):
    """What makes the score of every user with every item: ``users @ items.T + item_bias``, up to a term of the user.

    ``U`` and ``I`` are the rows of the two tables, row 0 (unknown) included.
    """

    user: str
    """The feature that names the user."""
    item: str
    """The feature that names the item."""
    users: Tensor
    """float32 ``[U, D]``."""
    items: Tensor
    """float32 ``[I, D]``."""
    item_bias: Tensor
    """float32 ``[I]``."""


class Recommender(nn.Module):
    """A model that scores samples: ``forward(inputs) -> logits``, float32 ``[B]``.

    Args:
        features: The sparse features, one-hot ones first.
        num_dense: Dense columns.
        config: Settings.
        embeddings: Tables to use instead of an :class:`EmbeddingCollection` of its own; anything with its ``forward``.
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        num_dense: int,
        config: ModelConfigBase,
        embeddings: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.feature_names = tuple(feature.name for feature in features)
        self.num_dense = num_dense
        self.embeddings = make_embeddings(features, config) if embeddings is None else embeddings

    def look_up(self, inputs: Inputs) -> Tensor:
        """The rows of all features, ``[B, N, D]``; in the tables' own type where there is no autocast."""
        rows = self.embeddings(inputs.ids, inputs.bags)
        handed_out = getattr(self.embeddings, "out_dtype", None)
        return rows.float() if handed_out and not torch.is_autocast_enabled(rows.device.type) else rows

    def loss(self, batch: Batch) -> Tensor:
        """Weighted binary cross-entropy, a scalar.

        The mean is over the samples, not over the weights: weights already average about 1.
        """
        return functional.binary_cross_entropy_with_logits(self._logits(batch), batch.labels, batch.weights)

    def _logits(self, batch: Batch) -> Tensor:
        """Those of the loss, float32 ``[B]``: with what an input policy's choice by label did to the odds."""
        logits = self(batch.inputs).float()
        return logits if batch.logit_offset is None else logits + batch.logit_offset

    @property
    def adds_logit_offset(self) -> bool:
        """Whether :meth:`loss` is the cross-entropy of single labels, the batch's ``logit_offset`` added to the logits.

        Not where a model has a loss of its own, unless it says so.
        """
        return type(self).loss is Recommender.loss

    @property
    def separable(self) -> bool:
        """Whether :meth:`loss` is a mean of terms of single samples, so that a batch can be shared out."""
        return True

    def terms(self, batch: Batch) -> int:
        """Terms of which :meth:`loss` is the mean, where it is separable."""
        return len(batch)

    def vectors(self) -> Vectors | None:
        """The vectors of all users and all items, of a model whose score is their product; else None."""
        return None

    def losses(self, batch: Batch) -> Tensor:
        """Cross-entropy of each sample, not weighted, float32 ``[B]``; times the weights its mean is :meth:`loss`."""
        return functional.binary_cross_entropy_with_logits(self._logits(batch), batch.labels, reduction="none")


def draw_items(batch: Batch, rows: Tensor, step: int, num_items: int, seed: int, count: int = 1) -> Tensor:
    """Items for each of some samples, drawn uniformly of all but row 0, which stands for unknown items.

    The draws hash the sample's index and the number of the training step, so a run can be repeated.

    Args:
        batch: B samples.
        rows: int64 ``[P]``, the samples that get items.
        step: Number of the training step.
        num_items: Rows of the items' table.
        seed: Key of the draws.
        count: K, items for each; the first is the same for any number.

    Returns:
        int32 ``[P, K]``.
    """
    return registry.draw_rows(batch.index.index_select(0, rows), count, num_items, seed, step)


def other_than(items: Tensor, drawn: Tensor, num_items: int) -> Tensor:
    """Drawn items ``[P, K]``, the next item in place of those that are the positive itself ``[P]``.

    Of several candidates it would be the hardest, and its pair teaches nothing: its margin is 0.
    """
    following = min(1, num_items - 1) + drawn % max(num_items - 1, 1)
    return torch.where(drawn == items.unsqueeze(1), following, drawn)


def position_of(names: Sequence[str], name: str | None, default: int) -> int:
    """Where the feature ``name`` stands; ``default`` when no name is given.

    Raises:
        ConfigError: There is no such feature.
    """
    if name is None:
        if default >= len(names):
            raise ConfigError(f"the model needs {default + 1} features, the data has {list(names)}")
        return default
    if name not in names:
        raise ConfigError(f"no feature {name!r}", remedy=f"choose of {', '.join(names)}")
    return list(names).index(name)
