"""The workload on a GPU: tables with Criteo Terabyte's cardinalities, ids drawn by Zipf's law where they are used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CRITEO_TERABYTE_CARDINALITIES = (
    39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10, 2208, 11938, 155, 4, 976, 14,
    39979771, 25641295, 39664984, 585935, 12972, 108, 36,
)  # fmt: skip
"""Rows of each table at a cap of 40 million, as in MLPerf's DLRM."""
ZIPF_EXPONENT = 1.05
GATED = 0.8
"""Share of the accesses that is gated: those of the least popular rows of each table."""
_SCATTER = 2_654_435_761  # a prime above every number of rows: multiplying by it permutes a table


def scaled(total: int) -> tuple[int, ...]:
    """Criteo Terabyte's cardinalities, those above 50,000 scaled by one factor to at most ``total`` rows together."""
    large = [rows for rows in CRITEO_TERABYTE_CARDINALITIES if rows > 50_000]
    factor = min((total - (sum(CRITEO_TERABYTE_CARDINALITIES) - sum(large))) / sum(large), 1.0)
    if factor <= 0:  # not even the small ones fit
        factor = total / sum(CRITEO_TERABYTE_CARDINALITIES)
        return tuple(max(int(rows * factor), 3) for rows in CRITEO_TERABYTE_CARDINALITIES)
    return tuple(int(rows * factor) if rows > 50_000 else rows for rows in CRITEO_TERABYTE_CARDINALITIES)


def zipf_ids(rows: Sequence[int], size: int, generator: torch.Generator) -> Tensor:
    """One batch of ids, int32 [size, F], popular rows scattered over each table, by the inverse of Zipf's law."""
    count = torch.tensor(rows, dtype=torch.float64, device=generator.device)
    u = torch.rand(size, len(rows), dtype=torch.float64, generator=generator, device=generator.device)
    power = 1.0 - ZIPF_EXPONENT
    ranks = ((1.0 - u * (1.0 - (count + 1) ** power)) ** (1.0 / power)).long() - 1
    whole = count.long()
    return (torch.minimum(ranks.clamp_(min=0), whole - 1) * _SCATTER % whole).int()


def cold_gate(rows: int, device: torch.device) -> Tensor:
    """uint8 [rows]: frozen are the least popular rows, to which ``GATED`` of the accesses go."""
    power = 1.0 - ZIPF_EXPONENT
    first = int((1.0 - (1.0 - GATED) * (1.0 - (rows + 1) ** power)) ** (1.0 / power))
    gate = torch.full((rows,), 255, dtype=torch.uint8, device=device)
    gate[torch.arange(first, rows, device=device) * _SCATTER % rows] = 0
    return gate
