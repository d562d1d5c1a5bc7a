"""How ``slipstream bench frontier`` sets up each policy: its defaults, clocks scaled to the length of the training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from slipstream.bench.frontier_options import CONTROLS, LABEL_ALONE
from slipstream.errors import ConfigError, first_problem
from slipstream.policies import build_policy
from slipstream.policies.configs import POLICIES
from slipstream.training import TrainConfig

Settings = dict[str, Any]


def _clocks(config: TrainConfig, steps: int) -> Settings:
    return {"warmup_steps": min(500, steps // 8), "every": max(min(200, steps // 20), 1)}


def _slipstream(config: TrainConfig, steps: int) -> Settings:
    if config.mode == "prequential":
        every = max(min(1000, steps // 8), 20)
        return {"mode": "periodic", "every": every, "window": every // 10}
    return {"mode": "once", "snapshot_start": min(1000, steps // config.epochs // 10)}


SETTINGS: Mapping[str, Callable[[TrainConfig, int], Settings]] = {
    "psse": _clocks,
    "saturation": _clocks,
    "subsampling": _clocks,
    "slipstream": _slipstream,
}
"""By policy: what differs from its defaults, given the training and its steps without skipping."""


VARIANTS: Mapping[str, tuple[str, Settings]] = {
    LABEL_ALONE: ("importance", {"score": "label"}),
    "gradient alone": ("row_importance", {"exponent": 0.0}),
    "random rows": ("random", {"level": "rows"}),
    "random tail": ("random", {"protect_tail": 8}),
    "psse tail": ("psse", {"protect_tail": 8}),
    "slipstream tail": ("slipstream", {"protect_tail": 8}),
}
"""Policies with settings that are compared with the defaults, by the name of their points; ``tail``: rare rows are
protected; ``rows``: random row gates, the control of policies that skip row updates; ``gradient alone``: whatever the
row's popularity."""


def chosen(names: Iterable[str]) -> list[str]:
    """The controls, then the policies named; every policy there is (but ``guard``, which sets its own budget) if none.

    Raises:
        ConfigError: There is no such policy.
    """
    names = list(names) or [name for name in POLICIES if name != "guard"]
    known = (*POLICIES, *VARIANTS)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"unknown policy {unknown[0]!r}", remedy=f"choose among {', '.join(known)}")
    controls = (*CONTROLS, LABEL_ALONE) if "importance" in names else CONTROLS
    return list(dict.fromkeys((*controls, *names)))


def _name(place: str) -> str:
    """The policy's own name."""
    return VARIANTS[place][0] if place in VARIANTS else place


def has_budget(name: str) -> bool:
    """Whether the policy takes a budget."""
    config = getattr(build_policy(_name(name)), "config", None)
    return config is not None and "budget" in type(config).model_fields


def with_policy(config: TrainConfig, name: str, budget: float, samples: int) -> TrainConfig:
    """The training with a policy.

    Args:
        config: The training without one.
        name: Name of the policy.
        budget: Its budget, if it takes one.
        samples: Samples of the data that the training passes in an epoch.

    Raises:
        ConfigError: The policy does not fit the training, or the budget the policy.
    """
    steps = samples * config.epochs // config.batch_size
    settings = SETTINGS[_name(name)](config, steps) if _name(name) in SETTINGS else {}
    settings |= VARIANTS[name][1] if name in VARIANTS else {}
    policy = {"name": _name(name), **settings, **({"budget": budget} if has_budget(name) else {})}
    build_policy(policy)
    try:
        return TrainConfig.model_validate({**config.model_dump(), "policy": policy})
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from error
