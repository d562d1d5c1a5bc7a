"""DCN-V2: improved deep and cross network (Wang et al., WWW 2021, arXiv 2008.13535)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from slipstream.data.batch import Inputs
from slipstream.data.schema import FeatureInfo
from slipstream.models.base import ModelConfigBase, Recommender, Widths
from slipstream.models.layers import CrossNetwork, mlp


class DCNv2Config(ModelConfigBase):
    """DCN-V2."""

    name: Literal["dcnv2"] = "dcnv2"
    cross_layers: int = Field(default=3, ge=1, le=64)
    """Cross layers."""
    rank: int | None = Field(default=None, ge=1)
    """Rank of the cross layers' matrices; None: full."""
    deep: Widths = (512, 256)
    """Widths of the deep part."""
    structure: Literal["stacked", "parallel"] = "stacked"
    """Whether the deep part reads what the cross layers give, or the same input as they."""


class DCNv2(Recommender):
    """Cross layers and an MLP over all rows and dense columns side by side."""

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        num_dense: int,
        config: DCNv2Config,
        embeddings: nn.Module | None = None,
    ) -> None:
        super().__init__(features, num_dense, config, embeddings)
        width = len(features) * config.embedding_dim + num_dense
        self.stacked = config.structure == "stacked"
        self.cross = CrossNetwork(width, config.cross_layers, config.rank)
        self.deep = mlp([width, *config.deep])
        deepest = config.deep[-1] if config.deep else width
        self.last = nn.Linear(deepest if self.stacked else deepest + width, 1)

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits ``[B]``."""
        rows = self.look_up(inputs).flatten(1)
        x0 = torch.cat([inputs.dense, rows.to(inputs.dense.dtype)], dim=1) if self.num_dense else rows
        crossed = self.cross(x0)
        if self.stacked:
            return self.last(self.deep(crossed)).squeeze(1).float()
        deep = self.deep(x0)
        return self.last(torch.cat([crossed.to(deep.dtype), deep], dim=1)).squeeze(1).float()
