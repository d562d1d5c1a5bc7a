"""Two towers: a vector for the user's side and one for the item's, and their dot product (Yi et al., RecSys 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from slipstream.data.batch import Inputs
from slipstream.data.schema import FeatureInfo
from slipstream.errors import ConfigError
from slipstream.models.base import ModelConfigBase, Recommender, Widths, position_of
from slipstream.models.layers import mlp


class TwoTowerConfig(ModelConfigBase):
    """Two towers."""

    name: Literal["two_tower"] = "two_tower"
    item_features: tuple[str, ...] = ()
    """Features of the item's tower, all others are the user's; empty: the second feature alone."""
    layers: Widths = (128, 64)
    """Widths of both towers' MLPs; the last is the size of the vectors."""
    temperature: float = Field(default=0.1, gt=0.0, allow_inf_nan=False)
    """The cosine of the two vectors is divided by it."""


class TwoTower(Recommender):
    """Logit = cosine of the two towers' vectors / temperature + bias. Dense columns go to the user's tower."""

    user_rows: Tensor
    item_rows: Tensor

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        num_dense: int,
        config: TwoTowerConfig,
        embeddings: nn.Module | None = None,
    ) -> None:
        super().__init__(features, num_dense, config, embeddings)
        if not config.layers:
            raise ConfigError("two_tower: layers must name at least one width")
        items = [position_of(self.feature_names, name, 1) for name in config.item_features or (None,)]
        users = [position for position in range(len(features)) if position not in items]
        if not users:
            raise ConfigError("two_tower: every feature is in the item's tower", remedy="leave one for the user's")
        self.register_buffer("user_rows", torch.tensor(users), persistent=False)
        self.register_buffer("item_rows", torch.tensor(sorted(items)), persistent=False)
        dim = config.embedding_dim
        self.user_tower = mlp([len(users) * dim + num_dense, *config.layers], last_relu=False)
        self.item_tower = mlp([len(items) * dim, *config.layers], last_relu=False)
        self.scale = 1.0 / config.temperature
        self.bias = nn.Parameter(torch.zeros(()))

    def towers(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Vectors of length 1 of the users' and of the items' side, each ``[B, layers[-1]]``."""
        rows = self.look_up(inputs)
        user = rows.index_select(1, self.user_rows).flatten(1)
        if self.num_dense:
            user = torch.cat([inputs.dense, user.to(inputs.dense.dtype)], dim=1)
        item = rows.index_select(1, self.item_rows).flatten(1)
        return (
            functional.normalize(self.user_tower(user).float(), dim=1),
            functional.normalize(self.item_tower(item).float(), dim=1),
        )

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits ``[B]``."""
        user, item = self.towers(inputs)
        return (user * item).sum(1) * self.scale + self.bias
