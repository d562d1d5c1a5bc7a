"""Training on several processes or machines: replicated tables, rows exchanged as (ids, values), decisions alike.

Every rank reads the same samples and decides alike, trains on its part of each batch, and applies the rows of all.
"""

from slipstream.distributed.exactly_once import Ledger
from slipstream.distributed.exchange import (
    Exchanged,
    data_parallel,
    exchange,
    mean_dense,
    same_everywhere,
)
from slipstream.distributed.hearing import over_ranks
from slipstream.distributed.parts import bounds, gather, mean_loss, part
from slipstream.distributed.watch import RankLost, Watch

__all__ = [
    "Exchanged",
    "Ledger",
    "RankLost",
    "Watch",
    "bounds",
    "data_parallel",
    "exchange",
    "gather",
    "mean_dense",
    "mean_loss",
    "over_ranks",
    "part",
    "same_everywhere",
]
