"""Intel-style DLRM: the row update fused with reduction and optimizer, the dense part in bfloat16 ([paper]).

The published program keeps each float32 weight as two bfloat16 halves (split SGD); here tables stay float32 and hand
out bfloat16 rows [ours], so this is Intel-style, with no claim of parity.
"""

from __future__ import annotations

from slipstream.policies import NoneConfig
from slipstream.systems.parts import changed, plain_sgd, published_dlrm
from slipstream.training import TrainConfig


def configure(base: TrainConfig) -> TrainConfig:
    """Our fused tables, DLRM, SGD, bfloat16, no policy."""
    return changed(
        base,
        engine="slipstream",
        model=published_dlrm(base),
        optimizer=plain_sgd(base),
        policy=NoneConfig(),
        bf16=True,
    )
