"""Policies by name: the union of their configurations, and the one place that builds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from slipstream.errors import ConfigError, first_problem
from slipstream.policies.base import Policy, PolicyBaseConfig, share_in_range
from slipstream.policies.combine import Combine
from slipstream.policies.guard import Guard, GuardConfig
from slipstream.policies.importance import Importance, ImportanceConfig
from slipstream.policies.none import NoneConfig, NoSkipping
from slipstream.policies.order import Order, OrderConfig
from slipstream.policies.psse import PSSE, PsseConfig
from slipstream.policies.random import Random, RandomConfig
from slipstream.policies.row_importance import RowImportance, RowImportanceConfig
from slipstream.policies.saturation import Saturation, SaturationConfig
from slipstream.policies.slipstream import Slipstream, SlipstreamConfig
from slipstream.policies.subsampling import Subsampling, SubsamplingConfig

_PartConfig = (
    NoneConfig
    | RandomConfig
    | PsseConfig
    | ImportanceConfig
    | GuardConfig
    | SaturationConfig
    | SubsamplingConfig
    | RowImportanceConfig
    | SlipstreamConfig
    | OrderConfig
)


def _by_name(value: Any) -> Any:
    """A part written as its name alone: ``inputs: random``."""
    return {"name": value} if isinstance(value, str) else value


PartConfig = Annotated[_PartConfig, Field(discriminator="name"), BeforeValidator(_by_name)]
"""Configuration of a policy that holds no other, told apart by ``name``."""


class CombineConfig(PolicyBaseConfig):
    """An input policy and a row policy together."""

    name: Literal["combine"] = "combine"
    inputs: PartConfig = RandomConfig()
    """The policy that skips inputs."""
    rows: PartConfig = PsseConfig()
    """The policy that skips row updates."""
    budget: Annotated[float, AfterValidator(share_in_range("budget"))] | None = None
    """Share of the row updates that is left of both; in (0, 1]. None: each part keeps its own budget."""
    split: float = Field(default=0.5, ge=0.0, le=1.0)
    """Inputs keep budget^split, rows budget^(1 - split); in [0, 1]."""


PolicyConfig = Annotated[
    _PartConfig | CombineConfig,
    Field(discriminator="name"),
]
"""Configuration of a policy, told apart by ``name``."""


def _combine(inputs: PolicyBaseConfig, rows: PolicyBaseConfig, budget: float | None, split: float) -> Policy:
    return Combine(build_policy(inputs), build_policy(rows), budget=budget, split=split)


_BUILD: dict[type[PolicyBaseConfig], Callable[..., Policy]] = {
    NoneConfig: NoSkipping,
    RandomConfig: Random,
    PsseConfig: PSSE,
    ImportanceConfig: Importance,
    GuardConfig: Guard,
    SlipstreamConfig: Slipstream,
    OrderConfig: Order,
    SaturationConfig: Saturation,
    SubsamplingConfig: Subsampling,
    RowImportanceConfig: RowImportance,
    CombineConfig: _combine,
}

POLICIES: tuple[str, ...] = tuple(str(config.model_fields["name"].default) for config in _BUILD)
"""Names that configurations and the command line accept."""

_ADAPTER: TypeAdapter[PolicyConfig] = TypeAdapter(PolicyConfig)


def build_policy(config: PolicyBaseConfig | Mapping[str, Any] | str) -> Policy:
    """Builds a policy.

    Args:
        config: A configuration, its fields as a mapping with ``name``, or a name alone (all defaults).

    Raises:
        ConfigError: An unknown name, or a setting that is unknown or out of range; says what is allowed.
    """
    if isinstance(config, str):
        config = {"name": config}
    if isinstance(config, Mapping):
        if config.get("name") not in POLICIES:
            raise ConfigError(f"unknown policy {config.get('name')!r}", remedy=f"choose one of {', '.join(POLICIES)}")
        try:
            config = _ADAPTER.validate_python(dict(config))
        except ValidationError as error:
            raise ConfigError(f"policy {config['name']!r}: {first_problem(error, tag=True)}") from error
    # Not model_dump: a nested configuration is passed on as it is.
    settings = {name: getattr(config, name) for name in type(config).model_fields if name != "name"}
    return _BUILD[type(config)](**settings)
