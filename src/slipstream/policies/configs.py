"""Policies by name: the union of their configurations, and the one place that builds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from slipstream.errors import ConfigError
from slipstream.policies.base import Policy, first_problem
from slipstream.policies.none import NoneConfig, NoSkipping
from slipstream.policies.psse import PSSE, PsseConfig
from slipstream.policies.random import Random, RandomConfig

PolicyConfig = Annotated[NoneConfig | RandomConfig | PsseConfig, Field(discriminator="name")]
"""Configuration of a policy, told apart by ``name``."""

POLICIES: tuple[str, ...] = ("none", "random", "psse")
"""Names that configurations and the command line accept."""

_ADAPTER: TypeAdapter[NoneConfig | RandomConfig | PsseConfig] = TypeAdapter(PolicyConfig)


def build_policy(config: NoneConfig | RandomConfig | PsseConfig | Mapping[str, Any] | str) -> Policy:
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
            raise ConfigError(f"policy {config['name']!r}: {first_problem(error)}") from error
    settings = config.model_dump(exclude={"name"})
    match config:
        case NoneConfig():
            return NoSkipping()
        case RandomConfig():
            return Random(**settings)
        case PsseConfig():
            return PSSE(**settings)
