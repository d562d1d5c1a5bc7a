"""What an update measures of a row: a 16-bit code of how much its updates still agree, and of how many there were.

High byte, the agreement x: the quotient of a net movement and the movement that could have been. It is kept on a log2
scale of 32 codes an octave, straight between powers of two, which are the upper bits of the float32::

    code = clamp((bits(x) >> 18) - (bits(1) >> 18) + 256, 0, 255)        x from 2^-8 to 1

so that every back end finds it by integers alone. Low byte, the measured steps in which the row was updated (however
many lookups it had in each): exact below 128; then each 16 codes count one step in 2, 4, … 256, drawn by the gate's
hash, so that the byte reaches past 8,000 and the bias of young moments can be divided out.

One step in :data:`SAMPLE` is measured, the others neither write nor count anything, which keeps the cost at a few
percent of an update. They are spread by the golden ratio, so that no period of the data can hide from them. All [ours].
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from functools import cache, lru_cache

import torch
from torch import Tensor

from slipstream.kernels.hashing import KEY_FACTOR, mix
from slipstream.kernels.types import TableState, UpdateSettings

CODES = 256
SAMPLE = 5
"""Steps of which one is measured."""
MANTISSA_SHIFT = 18
"""float32 bits below the 5 that are kept: 32 codes an octave."""
ONE = (127 << 23) >> MANTISSA_SHIFT
"""Upper bits of 1.0."""
EXACT = 128
"""Counts below it are exact; from there on each 16 count half as often as those before."""
TRAIL_LANES = 4
"""Elements that the trail projects a row's change on."""
TRAIL_DECAY = 0.9
"""Share of the trail that an update keeps."""
TINY = 1e-30
"""Least denominator: a row that never moved has code 0."""


def is_measured(step: int) -> bool:
    """Whether an optimizer step measures the rows that it updates: the same for all tables and back ends."""
    return ((step * KEY_FACTOR) & 0xFFFFFFFFFFFFFFFF) * SAMPLE >> 64 == 0


def encode(value: Tensor) -> Tensor:
    """Codes (int32) of values, same shape; above 1 and not a number give 255, below 2^-8 give 0."""
    bits = value.to(torch.float32).contiguous().view(torch.int32) & 0x7FFFFFFF
    return ((bits >> MANTISSA_SHIFT) - ONE + CODES).clamp(0, CODES - 1)


@cache
def steps_of_counts() -> tuple[int, ...]:
    """For each value of the low byte the (expected) number of steps, those between the measured included."""
    steps = list(range(EXACT + 1))
    while len(steps) < CODES:
        steps.append(steps[-1] + (1 << ((len(steps) - 1 - EXACT) // 16 + 1)))
    return tuple(SAMPLE * number for number in steps)


@lru_cache(maxsize=64)  # schedules of betas make new ones in every step
def corrections(beta1: float, beta2: float) -> Tensor:
    """For each count the factor that makes sum(m²) / sum(v) of moments that began at zero comparable, float32 [256]."""
    steps = torch.tensor(steps_of_counts(), dtype=torch.float64).clamp(min=1)
    return ((1 - beta2**steps) / (1 - beta1**steps) ** 2).to(torch.float32)


def measure(table: TableState, rows: Tensor, before: Tensor | None, s: UpdateSettings) -> None:
    """Takes an update's result into ``table.signal`` (and ``table.trail``), in plain PyTorch.

    Args:
        table: The table after the update.
        rows: int64 [N], the rows updated, each once.
        before: [N, D], their weights before, where the signal is that of the trail; else None.
        s: The settings of the update.
    """
    assert table.signal is not None
    signal = table.signal.view(torch.int16)
    count = signal[rows].to(torch.int64) & 255
    shift = torch.where(count < EXACT, 0, (count - EXACT) // 16 + 1)
    counted = (mix(rows, s.step, table.seed) & ((1 << shift) - 1)) == 0
    count = (count + counted).clamp(max=CODES - 1)
    if before is None:
        assert table.first is not None and table.second is not None
        moved = table.first[rows].float().square().sum(1)
        value = moved / table.second[rows].float().sum(1).clamp(min=TINY)
        value = value * corrections(s.beta1, s.beta2).to(value.device)[count]
    else:
        value = _follow(table, rows, before)
    signal[rows] = ((encode(value) << 8) | count).to(torch.int16)


def _follow(table: TableState, rows: Tensor, before: Tensor) -> Tensor:
    """Net movement ÷ path of the rows' trails, [N]."""
    assert table.trail is not None
    change = table.weight.detach()[rows].float() - before.float()
    change = torch.nn.functional.pad(change, (0, -change.shape[1] % TRAIL_LANES))
    change = change.unflatten(1, (-1, TRAIL_LANES)).sum(1)
    trail = table.trail[rows] * TRAIL_DECAY
    trail += torch.cat([change, change.norm(dim=1, keepdim=True)], dim=1)
    table.trail[rows] = trail
    return trail[:, :TRAIL_LANES].norm(dim=1) / trail[:, TRAIL_LANES].clamp(min=TINY)
