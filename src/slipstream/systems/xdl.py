"""XDL-style training: per-batch de-duplicated pull and push of sparse rows beside a dense part, on torch ([ours]).

XDL's own engine, servers and network are not here; what is kept is the synchronous order of work of one worker and one
parameter server. [paper] Call it XDL-style; it says nothing about XDL's speed.
"""

from __future__ import annotations

from slipstream.policies import NoneConfig
from slipstream.systems.parts import changed, plain_sgd, published_dlrm
from slipstream.training import TrainConfig


def configure(base: TrainConfig) -> TrainConfig:
    """Pulled tables, torch's SGD, DLRM, float32, no policy."""
    return changed(
        base,
        engine="xdl",
        model=published_dlrm(base),
        optimizer=plain_sgd(base),
        policy=NoneConfig(),
        bf16=False,
        compile=False,
        row_cache_bytes=None,
        hotline=False,
    )
