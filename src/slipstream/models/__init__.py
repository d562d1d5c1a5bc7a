"""Recommender models: short, ordinary ``nn.Module``s over an embedding collection, ours or plain torch's."""

from slipstream.models.base import ModelConfigBase, Recommender, RowCacheOptions, Vectors, make_embeddings
from slipstream.models.configs import MODELS, ModelConfig, build_model
from slipstream.models.dcnv2 import DCNv2, DCNv2Config
from slipstream.models.deepfm import DeepFM, DeepFMConfig
from slipstream.models.dlrm import DLRM, DLRMConfig
from slipstream.models.matrix_factorization import MatrixFactorization, MatrixFactorizationConfig
from slipstream.models.two_tower import TwoTower, TwoTowerConfig

__all__ = [
    "DLRM",
    "MODELS",
    "DCNv2",
    "DCNv2Config",
    "DLRMConfig",
    "DeepFM",
    "DeepFMConfig",
    "MatrixFactorization",
    "MatrixFactorizationConfig",
    "ModelConfig",
    "ModelConfigBase",
    "Recommender",
    "RowCacheOptions",
    "TwoTower",
    "TwoTowerConfig",
    "Vectors",
    "build_model",
    "make_embeddings",
]
