"""FAE (VLDB 2022): hot and cold inputs apart ([paper], [code]).

What FAE gains by keeping hot rows in an accelerator's memory is not reproduced: on one machine without a second memory
the order is what is left, with its effect on quality. [ours]
"""

from __future__ import annotations

from slipstream.policies import OrderConfig
from slipstream.systems.parts import changed, plain_sgd, published_dlrm
from slipstream.training import TrainConfig


def configure(base: TrainConfig) -> TrainConfig:
    """DLRM with SGD, all cold inputs and then all hot ones each epoch, as the released code does ([code]).

    Settings of a policy ``order`` are kept: ``--policy order --set policy.order=adaptive`` gives the article's
    scheduler.

    Raises:
        ConfigError: The mode is prequential, or the samples are shuffled.
    """
    policy = base.policy if isinstance(base.policy, OrderConfig) else OrderConfig()
    return changed(
        base, engine="slipstream", model=published_dlrm(base), optimizer=plain_sgd(base), policy=policy, bf16=False
    )
