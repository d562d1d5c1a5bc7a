"""DLRM reference (facebookresearch/dlrm, arXiv 1906.00091): the baseline of the articles.

One ``nn.EmbeddingBag(sparse=True)`` a feature, dot interaction, SGD over everything, float32, no skipping. [paper]
Our trainer feeds it: its loader and loop are not that program's. [ours]
"""

from __future__ import annotations

from slipstream.policies import NoneConfig
from slipstream.systems.parts import changed, plain_sgd, published_dlrm
from slipstream.training import TrainConfig


def configure(base: TrainConfig) -> TrainConfig:
    """Torch's tables and optimizers, DLRM, SGD, float32, no policy."""
    return changed(
        base,
        engine="torch",
        model=published_dlrm(base),
        optimizer=plain_sgd(base),
        policy=NoneConfig(),
        bf16=False,
        compile=False,
        row_cache_bytes=None,
        hotline=False,
    )
