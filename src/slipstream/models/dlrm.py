"""DLRM: deep learning recommendation model (Naumov et al., arXiv 1906.00091)."""

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
from slipstream.models.base import ModelConfigBase, Recommender, Widths
from slipstream.models.layers import DotInteraction, head, mlp

_EPS = 1e-6
"""Added to the mean square of ``feature_norm``: elements far below 0.001 stay small, and so do their gradients."""


class DLRMConfig(ModelConfigBase):
    """DLRM; the defaults are the Criteo Kaggle configuration of facebookresearch/dlrm."""

    name: Literal["dlrm"] = "dlrm"
    bottom: Widths = (512, 256, 64)
    """Hidden widths of the MLP over the dense columns; a layer of ``embedding_dim`` follows."""
    top: Widths = (512, 256)
    """Hidden widths of the MLP over the interactions; a layer of 1 follows."""
    first_order: bool = False
    """[ours] Add the last element of every row to the logit as the feature's own effect, and interact the others."""
    feature_norm: bool = False
    """[ours] Divide each feature's (pooled) vector by its root mean square before the interaction."""
    embedding_dim: int = Field(default=16, ge=2, le=4096)
    """Elements of a row, D."""


class DLRM(Recommender):
    """Bottom MLP over dense columns, dot products of all pairs of vectors, top MLP.

    Without dense columns there is no bottom MLP, and the top sees the dot products alone.

    ``feature_norm`` is our reading of the "feature normalisation for accuracy recovery" that reviews of Slipstream
    (arXiv 2404.04270) mention without a formula: rows that are updated less often stay small, and normalised ones weigh
    in the dot products as much as others. [ours]
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        num_dense: int,
        config: DLRMConfig,
        embeddings: nn.Module | None = None,
    ) -> None:
        super().__init__(features, num_dense, config, embeddings)
        if len(features) + (num_dense > 0) < 2:
            raise ConfigError(
                "dlrm multiplies the vectors of two features at least, or of one and of dense columns",
                remedy="use dcnv2 or deepfm, or data with more columns",
            )
        self.first_order, self.feature_norm = config.first_order, config.feature_norm
        width = config.embedding_dim - config.first_order
        self.bottom = mlp([num_dense, *config.bottom, width]) if num_dense else None
        self.interaction = DotInteraction(len(features) + (num_dense > 0), ahead=num_dense > 0)
        self.top = head(self.interaction.num_pairs + (width if num_dense else 0), config.top)

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits ``[B]``."""
        rows = self.look_up(inputs)
        effects = None
        if self.first_order:
            effects, rows = rows[..., -1].sum(1), rows[..., :-1]
        if self.feature_norm:
            rows = functional.rms_norm(rows.float(), rows.shape[-1:], eps=_EPS)
        if self.bottom is None:
            logits = self.top(self.interaction(rows)).squeeze(1)
        else:
            dense = self.bottom(inputs.dense)
            vectors = torch.cat([dense.unsqueeze(1), rows.to(dense.dtype)], dim=1)
            logits = self.top(self.interaction(vectors)).squeeze(1)
        return logits.float() if effects is None else logits.float() + effects.float()
