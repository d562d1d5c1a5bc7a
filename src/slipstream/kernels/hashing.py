"""A counter-based hash: the same (key, step, seed) draws the same number on every machine, thread and back end.

The mixer is SplitMix64's finaliser (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
"""

from __future__ import annotations

import torch
from torch import Tensor

KEY_FACTOR = 0x9E3779B97F4A7C15
STEP_FACTOR = 0xD1B54A32D192ED03
SEED_FACTOR = 0x8CB92BA72F3D8DD7
SAMPLE_SHIFT = 32
"""Bits of a key that number a row; those above number the sample, from 1, where samples draw for themselves."""
CANDIDATE_SHIFT = 48
"""Bits of a key that number whoever draws rows; those above number its candidates, from 0."""
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


def signed(value: int) -> int:
    """The int64 with the same 64 bits as an unsigned value."""
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >= 1 << 63 else value


def stream(step: int, seed: int) -> int:
    """The part of the hash that is the same for all keys of a step (unsigned 64 bits)."""
    return (step * STEP_FACTOR + seed * SEED_FACTOR) & 0xFFFFFFFFFFFFFFFF


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch's shift keeps the sign


def mix(keys: Tensor, step: int, seed: int) -> Tensor:
    """Hash of each key: int64 bits, same shape as ``keys`` (integers)."""
    x = keys.to(torch.int64) * signed(KEY_FACTOR) + signed(stream(step, seed))
    x = (x ^ _shift_right(x, 30)) * signed(MIX_1)
    x = (x ^ _shift_right(x, 27)) * signed(MIX_2)
    return x ^ _shift_right(x, 31)


def hash_uniform(keys: Tensor, seed: int, step: int = 0) -> Tensor:
    """A number in [0, 1) for each key, float32 with 24 random bits; same shape as ``keys``."""
    return _shift_right(mix(keys, step, seed), 40).to(torch.float32) * (1.0 / (1 << 24))


def hash_double(keys: Tensor, seed: int, step: int = 0) -> Tensor:
    """A number in [0, 1) for each key, float64 with 53 random bits, the first 24 those of :func:`hash_uniform`."""
    return _shift_right(mix(keys, step, seed), 11).to(torch.float64) * (1.0 / (1 << 53))


def draw_rows(keys: Tensor, count: int, num_rows: int, seed: int, step: int = 0) -> Tensor:
    """Rows of a table for each key, drawn uniformly of all but row 0, which stands for what is unknown.

    In integers: a float32 has 24 bits, and could not name most rows of a larger table.

    Args:
        keys: Integers [P], below 2^48 so that no two share a draw.
        count: K, rows for each, 2^16 at most; the first is the same for any number.
        num_rows: Rows of the table, 1 to 2^31.
        seed: Key of the draws.
        step: Draws of another step are others.

    Returns:
        int32 ``[P, K]``.
    """
    keys = keys.to(torch.int64).unsqueeze(1)
    if count > 1:
        keys = keys + (torch.arange(count, device=keys.device) << CANDIDATE_SHIFT)
    drawn = (_shift_right(mix(keys, step, seed), 32) * (num_rows - 1)) >> 32
    return (1 + drawn).clamp_max(num_rows - 1).to(torch.int32)


def gate_draw(rows: Tensor, step: int, seed: int, samples: Tensor | None = None) -> Tensor:
    """The byte (0-255, int64) that a row's gate is compared with.

    The row is updated when it is below the gate, or the gate is 255.

    Args:
        rows: Integers, any shape.
        step: Optimizer step.
        seed: The table's.
        samples: Same shape: the sample of each lookup, where each draws for itself; None: one draw a row.
    """
    keys = rows if samples is None else rows.to(torch.int64) + ((samples.to(torch.int64) + 1) << SAMPLE_SHIFT)
    return _shift_right(mix(keys, step, seed), 56)
