"""Parts of a saved state, taken over only as what they must be: loops and kernels trust what they are given.

A state may be of other tables, of another version, or changed on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from slipstream.errors import ConfigError

MOST = 2**53
"""Of what is counted: floats count no further."""
LARGEST = float(torch.finfo(torch.float32).max)
"""Of what is measured: products of two cannot overflow."""


def whole_number(
    state: Mapping[str, Any] | Sequence[Any], key: Any, *, least: int = 0, most: int = MOST, of: str = ""
) -> int:
    """A whole number of a state.

    Args:
        state: Holds it.
        key: Its name, or its place.
        least: What it must be at least.
        most: What it must be at most.
        of: What holds it, for the error.

    Raises:
        ConfigError: It is something else.
    """
    value: Any = state[key]
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"the state's {of}{key} is {str(value)[:40]!r}, not a whole number from {least} to {most}")
    return value


def finite_number(
    state: Mapping[str, Any] | Sequence[Any], key: Any, *, above: float = -math.inf, of: str = ""
) -> float:
    """A finite number of a state, at most that of float32.

    Args:
        state: Holds it.
        key: Its name, or its place.
        above: What it must be greater than.
        of: What holds it, for the error.

    Raises:
        ConfigError: It is something else.
    """
    value: Any = state[key]
    if type(value) not in (int, float) or not (abs(value) <= LARGEST and value > above):
        least = "" if above == -math.inf else f" above {above:g}"
        raise ConfigError(f"the state's {of}{key} is {str(value)[:40]!r}, not a finite float32 number{least}")
    return float(value)


_REMEDY = "load the state of a run with the same tables and settings"


def checked_tensor(
    saved: Any, what: str, shape: Sequence[int], dtype: torch.dtype = torch.float32, *, remedy: str = _REMEDY
) -> Tensor:
    """A tensor of a state, if it has this shape and dtype.

    Args:
        saved: What the state holds.
        what: For the error.
        shape: Of the tensor.
        dtype: Of the tensor.
        remedy: For the error.

    Raises:
        ConfigError: It has another shape or dtype, or is no tensor.
    """
    if isinstance(saved, Tensor) and saved.shape == torch.Size(shape) and saved.dtype == dtype:
        return saved
    found = f"{_name(saved.dtype)} {list(saved.shape)}" if isinstance(saved, Tensor) else "no tensor"
    raise ConfigError(f"the state's {what} is {found}, not {_name(dtype)} {list(shape)}", remedy=remedy)


def checked_positions(saved: Any, what: str, count: int) -> Tensor:
    """Positions of a state, if they are of so many samples: int64 [K], each from 0 to ``count`` - 1.

    Args:
        saved: What the state holds.
        what: For the error.
        count: N.

    Raises:
        ConfigError: They are something else.
    """
    length = len(saved) if isinstance(saved, Tensor) and saved.dim() == 1 else 0
    positions = checked_tensor(saved, what, (length,), torch.int64)
    if length and not 0 <= int(positions.min()) <= int(positions.max()) < count:
        raise ConfigError(f"the state's {what} has positions outside of {count} samples", remedy=_REMEDY)
    return positions


def copy_into(target: Tensor, saved: Any, what: str, *, remedy: str = _REMEDY) -> None:
    """Copies a saved tensor into one of the same shape and dtype; torch would repeat a smaller one over it.

    Args:
        target: Written to.
        saved: The tensor of the state.
        what: For the error.
        remedy: For the error.

    Raises:
        ConfigError: It has another shape or dtype, or is no tensor.
    """
    target.copy_(checked_tensor(saved, what, target.shape, target.dtype, remedy=remedy))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_inputs(ids: Any, bags: Iterable[tuple[Any, Any]], samples: int) -> None:
    """Whether the sparse features of a state are what compiled code takes.

    Args:
        ids: To be whole numbers [B, F].
        bags: Pairs to be whole numbers [N] and int64 [B + 1].
        samples: B.

    Raises:
        ConfigError: They are something else.
    """
    whole = (torch.int32, torch.int64)
    fits = isinstance(ids, Tensor) and ids.dtype in whole and ids.dim() == 2 and len(ids) == samples
    for values, offsets in bags:
        fits = fits and isinstance(values, Tensor) and values.dtype in whole and values.dim() == 1
        fits = fits and isinstance(offsets, Tensor) and (offsets.dtype, offsets.shape) == (torch.int64, (samples + 1,))
    if not fits:
        raise ConfigError("the state's inputs have features of another shape or type")
