"""Slipstream as published (arXiv 2404.04270): DLRM with SGD, hot inputs of stale rows dropped ([paper], [code]).

Criteo Kaggle: batch 1024, D = 0.3, S = 1000 hot batches, m = 0.03, all 26 lookups stale. ``--set
model.feature_norm=true`` adds our reading of its feature normalisation, off by default. [ours]
"""

from __future__ import annotations

from slipstream.policies import SlipstreamConfig
from slipstream.systems.parts import changed, plain_sgd, published_dlrm
from slipstream.training import TrainConfig


def configure(base: TrainConfig) -> TrainConfig:
    """DLRM, SGD, and the policy ``slipstream`` in mode ``once``, with its settings if it is chosen already.

    Raises:
        ConfigError: The mode is prequential, or the samples are shuffled.
    """
    policy = base.policy if isinstance(base.policy, SlipstreamConfig) else SlipstreamConfig()
    return changed(
        base,
        engine="slipstream",
        model=published_dlrm(base),
        optimizer=plain_sgd(base),
        policy=policy.model_copy(update={"mode": "once"}),
        bf16=False,
    )
