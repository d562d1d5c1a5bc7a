"""FAE (VLDB 2022): hot and cold inputs apart ([paper], [code]).

On a GPU (``device=cuda``), or where ``row_cache_bytes`` is set, tables are in host memory and the hot rows in the
accelerator's: not a fixed set that is synchronised at each transition, as in the article, but a cache that hot inputs
find filled and that rows leave one by one ([ours], see :mod:`slipstream.embedding.row_cache`). On a CPU alone the order
is what is left, with its effect on quality.
"""

from __future__ import annotations

from slipstream.policies import OrderConfig
from slipstream.systems.parts import HOT_BYTES, changed, plain_sgd, published_dlrm
from slipstream.training import TrainConfig


def configure(base: TrainConfig) -> TrainConfig:
    """DLRM with SGD, all cold inputs and then all hot ones each epoch, as the released code does ([code]).

    Settings of a policy ``order`` are kept: ``--policy order --set policy.order=adaptive`` gives the article's
    scheduler.

    Raises:
        ConfigError: The mode is prequential, or the samples are shuffled.
    """
    policy = base.policy if isinstance(base.policy, OrderConfig) else OrderConfig()
    cache = base.row_cache_bytes or (HOT_BYTES if base.device == "cuda" else None)
    return changed(
        base,
        engine="slipstream",
        model=published_dlrm(base),
        optimizer=plain_sgd(base),
        policy=policy,
        bf16=False,
        row_cache_bytes=cache,
        compile=base.compile and cache is None,
    )
