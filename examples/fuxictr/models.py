"""DeepFM, DCNv2 and DLRM from FuxiCTR's layers.

FuxiCTR keeps its models in its repository, not in the package on PyPI. These assemble the package's layers as
published, so that the comparison needs nothing but the package; its own classes are used in the same way.
"""

from __future__ import annotations

from typing import Any

import torch
from fuxictr.pytorch.layers import (
    CrossNetV2,
    FactorizationMachine,
    FeatureEmbedding,
    InnerProductInteraction,
    MLP_Block,
)
from fuxictr.pytorch.models import BaseModel
from torch import nn


class _Model(BaseModel):
    """What FuxiCTR's models do at the end of their constructor, as its documentation asks."""

    def _finish(self, settings: dict[str, Any]) -> None:
        self.compile(settings["optimizer"], settings["loss"], settings["learning_rate"])
        self.reset_parameters()
        self.model_to_device()


class DeepFM(_Model):
    """Guo et al., IJCAI 2017."""

    def __init__(self, feature_map: Any, embedding_dim: int, hidden_units: list[int], **settings: Any) -> None:
        super().__init__(feature_map, **settings)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.fm = FactorizationMachine(feature_map)
        self.mlp = MLP_Block(feature_map.sum_emb_out_dim(), hidden_units, output_dim=1)
        self._finish(settings)

    def forward(self, inputs: Any) -> dict[str, torch.Tensor]:
        """Probabilities, as ``y_pred`` [B, 1]."""
        features = self.get_inputs(inputs)
        rows = self.embedding_layer(features)
        return {"y_pred": self.output_activation(self.fm(features, rows) + self.mlp(rows.flatten(start_dim=1)))}


class DCNv2(_Model):
    """Wang et al., WWW 2021, cross and deep part in parallel."""

    def __init__(self, feature_map: Any, embedding_dim: int, hidden_units: list[int], **settings: Any) -> None:
        super().__init__(feature_map, **settings)
        size = feature_map.sum_emb_out_dim()
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.cross = CrossNetV2(size, 3)
        self.deep = MLP_Block(size, hidden_units)
        self.last = nn.Linear(size + hidden_units[-1], 1)
        self._finish(settings)

    def forward(self, inputs: Any) -> dict[str, torch.Tensor]:
        """Probabilities, as ``y_pred`` [B, 1]."""
        rows = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        return {"y_pred": self.output_activation(self.last(torch.cat([self.cross(rows), self.deep(rows)], dim=1)))}


class DLRM(_Model):
    """Naumov et al., arXiv 1906.00091, with dot products."""

    def __init__(self, feature_map: Any, embedding_dim: int, hidden_units: list[int], **settings: Any) -> None:
        super().__init__(feature_map, **settings)
        self.dense = [name for name, field in feature_map.features.items() if field["type"] == "numeric"]
        fields = feature_map.num_fields - len(self.dense) + 1
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim, not_required_feature_columns=self.dense)
        self.bottom = MLP_Block(len(self.dense), hidden_units, output_dim=embedding_dim)
        self.interact = InnerProductInteraction(fields, output="inner_product")
        self.top = MLP_Block(fields * (fields - 1) // 2 + embedding_dim, hidden_units, output_dim=1)
        self._finish(settings)

    def forward(self, inputs: Any) -> dict[str, torch.Tensor]:
        """Probabilities, as ``y_pred`` [B, 1]."""
        features = self.get_inputs(inputs)
        dense = self.bottom(torch.stack([features[name] for name in self.dense], dim=1).float())
        rows = torch.cat([self.embedding_layer(features), dense.unsqueeze(1)], dim=1)
        return {"y_pred": self.output_activation(self.top(torch.cat([self.interact(rows), dense], dim=1)))}
