"""Whole systems that Slipstream is measured against or reproduces, as configurations of one trainer.

``slipstream train --system NAME`` applies one to the settings given: what makes the system is set, the rest (data,
learning rates, batch size, seed, ...) is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable

from slipstream.errors import ConfigError
from slipstream.systems import dlrm_reference, fae, hotline, intel_dlrm, slipstream_paper, xdl
from slipstream.training import TrainConfig

_CONFIGURE: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    "dlrm_reference": dlrm_reference.configure,
    "intel_dlrm": intel_dlrm.configure,
    "xdl": xdl.configure,
    "fae": fae.configure,
    "hotline": hotline.configure,
    "slipstream_paper": slipstream_paper.configure,
}

SYSTEMS: tuple[str, ...] = tuple(_CONFIGURE)
"""Names that the command line accepts."""


def configure(name: str, base: TrainConfig) -> TrainConfig:
    """The settings ``base`` with what makes the system ``name``.

    Raises:
        ConfigError: There is no such system, or the settings leave no room for it; says which.
    """
    if name not in _CONFIGURE:
        raise ConfigError(f"unknown system {name!r}", remedy=f"choose one of {', '.join(SYSTEMS)}")
    return _CONFIGURE[name](base)
