"""Models by name: the union of their configurations, and the one place that builds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from slipstream.data.schema import FeatureInfo
from slipstream.models.base import Engine, Recommender, RowCacheOptions, make_embeddings
from slipstream.models.dcnv2 import DCNv2, DCNv2Config
from slipstream.models.deepfm import DeepFM, DeepFMConfig
from slipstream.models.dlrm import DLRM, DLRMConfig
from slipstream.models.matrix_factorization import MatrixFactorization, MatrixFactorizationConfig
from slipstream.models.two_tower import TwoTower, TwoTowerConfig

ModelConfig = Annotated[
    DLRMConfig | DCNv2Config | DeepFMConfig | MatrixFactorizationConfig | TwoTowerConfig, Field(discriminator="name")
]
"""Configuration of a model, told apart by ``name``."""

MODELS: tuple[str, ...] = ("dlrm", "dcnv2", "deepfm", "mf", "two_tower")
"""Names that configurations and the command line accept."""


def build_model(
    config: DLRMConfig | DCNv2Config | DeepFMConfig | MatrixFactorizationConfig | TwoTowerConfig,
    features: Sequence[FeatureInfo],
    num_dense: int,
    *,
    engine: Engine = "slipstream",
    cache: RowCacheOptions | None = None,
) -> Recommender:
    """Builds a model; draw its initial values by ``torch.manual_seed``.

    Args:
        config: Its configuration.
        features: The data's sparse features, one-hot ones first.
        num_dense: Dense columns.
        engine: Whose tables: ours, or ``torch``'s with sparse gradients as the reference.
        cache: Keep our tables in host memory; not for matrix factorization.

    Raises:
        ConfigError: The model and the data do not fit together.
    """
    if isinstance(config, MatrixFactorizationConfig):
        return MatrixFactorization(features, num_dense, config, engine=engine)
    embeddings = make_embeddings(features, config, engine, cache)
    match config:
        case DLRMConfig():
            return DLRM(features, num_dense, config, embeddings)
        case DCNv2Config():
            return DCNv2(features, num_dense, config, embeddings)
        case DeepFMConfig():
            return DeepFM(features, num_dense, config, embeddings)
        case TwoTowerConfig():
            return TwoTower(features, num_dense, config, embeddings)
