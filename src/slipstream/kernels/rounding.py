"""Stochastic rounding of float32 to bfloat16 and float16: up or down by chance, so that the expectation is the value.

Tables below float32 are computed in float32 and rounded when they are written. Rounding to nearest would lose every
step smaller than half a unit in the last place, for good; rounding by chance keeps it in the mean (Gupta et al., "Deep
learning with limited numerical precision", ICML 2015). The chance is drawn by the gates' hash from (element, step,
seed), in a stream of its own, so every back end rounds alike.

Values that the narrow type holds exactly stay as they are. Infinities and NaN are converted as torch does, and values
above the largest finite number become infinite.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import torch
from torch import Tensor

from slipstream.kernels.hashing import mix

ROUNDING_STREAM = 0x52D1
"""Mixed into the table's seed, so that rounding and gates never share draws."""
LEAST_NORMAL = 2.0**-14
"""Least normal float16."""
SUBNORMAL_UNIT = 2.0**-24
"""Distance of float16's numbers below it."""


def stochastic(values: Tensor, rows: Tensor, dtype: torch.dtype, step: int, seed: int) -> Tensor:
    """Rows rounded to a narrower type by chance.

    Args:
        values: float32 [N, D].
        rows: int64 [N], the rows' numbers: with the column they name an element.
        dtype: bfloat16 or float16.
        step: The optimizer step.
        seed: The table's seed.

    Returns:
        [N, D] of ``dtype``.
    """
    dim = values.shape[1]
    elements = rows.unsqueeze(1) * dim + torch.arange(dim, device=rows.device)
    draws = (mix(elements, step, seed ^ ROUNDING_STREAM) >> 40) & 0xFFFFFF  # 24 bits
    bits = values.contiguous().view(torch.int32)
    dropped = 16 if dtype == torch.bfloat16 else 13
    low = (1 << dropped) - 1
    rounded = ((bits + (draws >> (24 - dropped)).to(torch.int32)) & ~low).view(torch.float32)
    if dtype == torch.float16:
        size = values.abs()
        small = torch.floor(size * (1 / SUBNORMAL_UNIT) + draws.to(torch.float32) * 2.0**-24) * SUBNORMAL_UNIT
        rounded = torch.where(size < LEAST_NORMAL, small.copysign(values), rounded)
    return torch.where(torch.isfinite(values), rounded, values).to(dtype)
