"""No skipping: the control that every comparison needs."""

from __future__ import annotations

from typing import Literal

from slipstream.policies.base import Policy, PolicyBaseConfig


class NoneConfig(PolicyBaseConfig):
    """Nothing is skipped."""

    name: Literal["none"] = "none"


class NoSkipping(Policy):
    """Trains on every input and updates every row; batches pass the Skipper as they are."""

    name = "none"
