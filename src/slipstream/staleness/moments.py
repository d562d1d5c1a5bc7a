"""Whether a row's updates still lead anywhere, read from the code that its updates leave behind.

With moments (Adam): the energy of the mean gradient over that of the gradients, sum(m²) / sum(v), with the bias of
young moments divided out. Without (SGD, Adagrad): the length of the row's recent net movement over that of its path.
Both are near 1 while updates agree and fall to a floor when only noise is left: a row that has reached its place.
[ours]

What updates write per row and how the code is made: :mod:`slipstream.kernels.signal`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slipstream.kernels.signal import CODES, TRAIL_DECAY, encode, steps_of_counts

__all__ = ["codes", "decode", "encode", "moments_floor", "trail_floor", "updates"]


def codes(signal: Tensor) -> Tensor:
    """The agreement's codes, 0 to 255, int64, of signals (uint16), same shape."""
    return (signal.view(torch.int16).to(torch.int64) >> 8) & (CODES - 1)


def updates(signal: Tensor) -> Tensor:
    """Steps in which each row was updated, int64, same shape: 5 for each that was measured, at most 40,160."""
    return torch.tensor(steps_of_counts(), device=signal.device)[signal.view(torch.int16).to(torch.int64) & (CODES - 1)]


def decode(code: Tensor) -> Tensor:
    """The agreement, float32 in [2^-8, 1], at the middle of each code's interval, same shape as ``code`` (integers)."""
    whole, part = code.div(32, rounding_mode="floor"), code % 32
    return torch.ldexp(1 + (part.to(torch.float32) + 0.5) / 32, whole - 8)


def moments_floor(beta1: float) -> float:
    """What pure noise leaves of sum(m²) / sum(v): (1 − β1) / (1 + β1)."""
    return (1 - beta1) / (1 + beta1)


def trail_floor() -> float:
    """What pure noise leaves of net movement / path: √((1 − ρ) / (1 + ρ)) at the trail's decay ρ = 0.9."""
    return ((1 - TRAIL_DECAY) / (1 + TRAIL_DECAY)) ** 0.5
