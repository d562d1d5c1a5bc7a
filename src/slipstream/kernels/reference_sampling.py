"""Lookups drawn by the size of their gradient, in plain PyTorch: what defines the CPU kernel, and what a GPU runs.

Nothing here waits for a GPU: shapes do not depend on what was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from slipstream.kernels.hashing import hash_uniform
from slipstream.kernels.types import DrawnLookups, Lookups

SCORE_SHIFT = 18
"""Bits of a float32 below those that tell popularities apart: 32 steps an octave."""
NORM_WIDTH = 16
"""Elements of a gradient by which its norm is estimated: 64 bytes."""
SCORE_CODES = 1 << (31 - SCORE_SHIFT)


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was drawn of the lookups of a forward pass.

    Attributes:
        lookups: Those that were kept, their factors divided by the probability that they were.
        dropped: int64 [F]: how many of each feature were not.
        sums: float64 [3]: of the probabilities, of the scores, and the number of lookups, over features that are drawn
            from.
    """

    lookups: Lookups | DrawnLookups
    dropped: Tensor
    sums: Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How lookups are drawn: with probability ``min(1, max(floor, factor * score))``.

    The score of a lookup is the norm of its gradient times the ``-exponent``-th power of its row's popularity, the
    lookups of this pass included. The norm is that of the first 16 elements, an estimate that reads one line of memory;
    where they are 0, of the others.

    Attributes:
        popularity: For each feature the accesses of its table's rows, float32 [R], not negative and contiguous, to
            which those of the pass are added; None: all of its lookups are kept.
        increment: What an access adds.
        factor: A number, or a float64 scalar on the popularities' device.
        exponent: 0 or more.
        floor: Least probability, in (0, 1].
        step: Of the draws.
        seed: Of the draws.
    """

    popularity: Sequence[Tensor | None]
    increment: float
    factor: float | Tensor
    exponent: float
    floor: float
    step: int
    seed: int


@lru_cache(maxsize=8)
def powers(exponent: float, device: torch.device | None = None) -> Tensor:
    """float32 [8192]: popularity to the power of ``-exponent``, by the popularity's upper bits; of 0 as of 1."""
    middle = (torch.arange(SCORE_CODES, dtype=torch.int32) << SCORE_SHIFT) | (1 << (SCORE_SHIFT - 1))
    table = middle.view(torch.float32).double().pow(-exponent).float()
    table[0] = 1.0
    return table.to(device)


def norms_of(grad: Tensor) -> Tensor:
    """The norm of the first elements of each output's gradient, where they are 0 of the others, float32 [B, F].

    Args:
        grad: [B, F, D].
    """
    squares = grad.float().square().double()
    first, others = squares[:, :, :NORM_WIDTH].sum(dim=2), squares[:, :, NORM_WIDTH:].sum(dim=2)
    return torch.where(first == 0.0, others, first).sqrt().float()


def sample_lookups(lookups: Lookups, grad: Tensor, sampling: Sampling) -> Sampled:
    """Draws which lookups take part in the row update; their expected sum is that of all.

    A lookup whose norm is not a finite number is kept.

    Args:
        lookups: B samples, F features; ids inside their tables.
        grad: [B, F, D], gradient of the pooled output.
        sampling: How.
    """
    size, count, device = lookups.batch_size, lookups.num_features, lookups.ids.device
    norms = norms_of(grad)
    if lookups.offsets is None:
        ids = lookups.ids.t().reshape(-1)
        bags = torch.arange(size * count, device=device)
        offsets = torch.arange(size * count + 1, device=device)
    else:
        ids, offsets = lookups.ids, lookups.offsets.to(torch.int64)
        # A place belongs to the last bag that begins at or before it; those outside of all bags to none that counts.
        places = torch.arange(ids.numel(), device=device)
        bags = (torch.searchsorted(offsets, places, right=True) - 1).clamp(0, max(size * count - 1, 0))
    rows, features = ids.to(torch.int64), bags // max(size, 1)
    padding = torch.tensor([lookups.padding_of(f) for f in range(count)], device=device)
    used = rows != padding[features]
    used &= (torch.arange(ids.numel(), device=device) >= offsets[0]) & (
        torch.arange(ids.numel(), device=device) < offsets[-1]
    )
    factors = torch.ones(ids.numel(), device=device)
    if lookups.sample_weights is not None:
        factors = lookups.sample_weights.float()
    if lookups.mean:
        in_bag = torch.zeros(size * count, device=device).index_add_(0, bags, used.float())
        factors = factors / in_bag.clamp(min=1.0)[bags]
    by_code = powers(sampling.exponent, device)
    power, drawn = torch.ones_like(factors), torch.zeros_like(used)
    counted = [(f, counts) for f, counts in enumerate(sampling.popularity) if counts is not None and len(counts)]
    insides = [(features == f) & (rows >= 0) & (rows < counts.numel()) for f, counts in counted]
    for (_, popularity), inside in zip(counted, insides, strict=True):
        popularity.index_add_(0, torch.where(inside, rows, 0), (inside & used) * sampling.increment)
    for (_, popularity), inside in zip(counted, insides, strict=True):
        codes = popularity.view(torch.int32)[torch.where(inside, rows, 0)] >> SCORE_SHIFT
        power, drawn = torch.where(inside, by_code[codes], power), drawn | inside
    drawn &= used
    scores = norms.t().reshape(-1)[bags] * factors.abs() * power
    factor = torch.as_tensor(sampling.factor, dtype=torch.float32, device=device)
    chance = (scores * factor).clamp(min=sampling.floor)
    chance = torch.where(drawn & (chance < 1.0), chance, 1.0)
    draws = hash_uniform(torch.arange(ids.numel(), device=device), sampling.seed, sampling.step)
    kept = used & (draws < chance)
    dropped = torch.zeros(count, dtype=torch.int64, device=device).index_add_(0, features, (used & ~kept).long())
    sums = torch.stack([torch.where(drawn, x, 0.0).double().sum() for x in (chance, scores, torch.ones_like(scores))])
    # What is left out stands as a padding row outside of every table.
    nowhere = torch.iinfo(torch.int64).max
    made = Lookups(torch.where(kept, rows, nowhere), offsets, count, factors / chance, padding=(nowhere,) * count)
    return Sampled(made, dropped, sums)
