"""Software Hotline (ISCA 2024): popular inputs first, the rows of the others gathered meanwhile ([paper: abstract])."""

from __future__ import annotations

from slipstream.policies import NoneConfig
from slipstream.systems.parts import HOT_BYTES, changed, plain_sgd, published_dlrm
from slipstream.training import TrainConfig


def configure(base: TrainConfig) -> TrainConfig:
    """DLRM with SGD over tables in host memory; each batch in two micro-batches of one step, nothing skipped.

    The article's accelerator gathers rows in hardware; here a second stream copies them, so no speed of the article's
    is claimed (see :mod:`slipstream.training.hotline`). ``row_cache_bytes`` is kept; 256 MiB where it is not set.
    """
    return changed(
        base,
        engine="slipstream",
        model=published_dlrm(base),
        optimizer=plain_sgd(base),
        policy=NoneConfig(),
        bf16=False,
        compile=False,
        row_cache_bytes=base.row_cache_bytes or HOT_BYTES,
        hotline=True,
    )
