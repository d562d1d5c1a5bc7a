"""Parts of a saved state, taken over only as what they must be: loops and kernels trust what they are given.

A state may be of other tables, of another version, or changed on purpose.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from slipstream.errors import ConfigError

MOST = 2**53
"""Of what is counted: floats count no further."""


def count(state: Mapping[str, Any] | Sequence[Any], key: Any, *, least: int = 0) -> int:
    """A whole number of a state.

    Args:
        state: Holds it.
        key: Its name, or its place.
        least: What it must be at least; at most it is 2^53.

    Raises:
        ConfigError: It is something else.
    """
    value: Any = state[key]
    if type(value) is not int or not least <= value <= MOST:
        raise ConfigError(f"the state's {key} is {str(value)[:40]!r}, not a whole number from {least} to 2^53")
    return value


def number(state: Mapping[str, Any] | Sequence[Any], key: Any, *, above: float = -math.inf) -> float:
    """A finite number of a state.

    Args:
        state: Holds it.
        key: Its name, or its place.
        above: What it must be greater than.

    Raises:
        ConfigError: It is something else.
    """
    value: Any = state[key]
    if type(value) not in (int, float) or not (abs(value) <= sys.float_info.max and value > above):
        raise ConfigError(f"the state's {key} is {str(value)[:40]!r}, not a finite number above {above:g}")
    return float(value)


def fill(
    target: Tensor, saved: Any, what: str, *, remedy: str = "load the state of a run with the same tables and settings"
) -> None:
    """Copies a saved tensor into one of the same shape and dtype; torch would repeat a smaller one over it.

    Args:
        target: Written to.
        saved: The tensor of the state.
        what: For the error.
        remedy: For the error.

    Raises:
        ConfigError: It has another shape or dtype.
    """
    wanted = f"{str(target.dtype).removeprefix('torch.')} {list(target.shape)}"
    if not isinstance(saved, Tensor):
        raise ConfigError(f"the state's {what} is no tensor, not {wanted}", remedy=remedy)
    if saved.shape != target.shape or saved.dtype != target.dtype:
        found = f"{str(saved.dtype).removeprefix('torch.')} {list(saved.shape)}"
        raise ConfigError(f"the state's {what} is {found}, not {wanted}", remedy=remedy)
    target.copy_(saved)
