"""DeepFM: a factorization machine beside an MLP over the same rows (Guo et al., IJCAI 2017, arXiv 1703.04247)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from slipstream.data.batch import Inputs
from slipstream.data.schema import FeatureInfo
from slipstream.models.base import ModelConfigBase, Recommender, Widths
from slipstream.models.layers import head


class DeepFMConfig(ModelConfigBase):
    """DeepFM."""

    name: Literal["deepfm"] = "deepfm"
    embedding_dim: int = Field(default=16, ge=2, le=4096)
    """Elements of a row, D: D - 1 factors, and last the feature's first-order weight."""
    deep: Widths = (256, 128)
    """Hidden widths of the MLP; empty leaves a plain factorization machine."""


class DeepFM(Recommender):
    """First-order weights + dot products of all pairs + MLP.

    The first-order weight is the last element of each row, so that one lookup serves all parts. Dense columns enter
    linearly and in the MLP.
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        num_dense: int,
        config: DeepFMConfig,
        embeddings: nn.Module | None = None,
    ) -> None:
        super().__init__(features, num_dense, config, embeddings)
        self.bias = nn.Parameter(torch.zeros(()))
        self.linear = nn.Linear(num_dense, 1, bias=False) if num_dense else None
        width = len(features) * (config.embedding_dim - 1) + num_dense
        self.deep = head(width, config.deep) if config.deep else None

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits ``[B]``."""
        rows = self.look_up(inputs).float()
        factors = rows[..., :-1]
        # Sum over pairs of dot products = half of (square of the sum - sum of the squares).
        pairs = (factors.sum(1).square() - factors.square().sum(1)).sum(1) / 2
        logits = self.bias + rows[..., -1].sum(1) + pairs
        if self.linear is not None:
            logits = logits + self.linear(inputs.dense).squeeze(1)
        if self.deep is not None:
            flat = factors.flatten(1)
            logits = logits + self.deep(torch.cat([inputs.dense, flat], 1) if self.num_dense else flat).squeeze(1)
        return logits.float()
