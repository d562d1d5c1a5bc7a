"""The hidden teacher of the synthetic data, in compiled code.

Every value is a pure function of (seed, sample number): drawn from a counter-based hash, never from a stateful
generator. So samples are the same whatever the chunk size and the number of threads, any range can be drawn alone,
and the teacher needs no tables of its own at any number of rows.

Letters: N samples, F categorical features, D dense features, R_f rows of feature f (without the out-of-vocabulary row).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

FIRST_ORDER, PAIRWISE, DENSE = 0, 1, 2
"""Columns of the components that :func:`draw` writes."""

LATENT_DIM = 4
"""Length of a row's hidden vector: four 16-bit fields of one 64-bit hash."""

_WEYL = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-53
_UNIT_VARIANCE = math.sqrt(3.0)
# Streams keep the draws of one sample (or of one row) apart; they only have to differ.
_ROW_FIRST_ORDER, _ROW_VECTOR, _SLOT_PHASE, _SLOT_JUMP = 1, 2, 3, 4
_SAMPLE_LABEL, _SAMPLE_DENSE, _SAMPLE_IDS = 1_000, 2_000, 3_000


class Teacher(NamedTuple):
    """What :func:`draw` needs, as plain arrays and numbers (Numba knows no pydantic)."""

    seed: int
    rows: NDArray[np.int64]
    """[F] rows of each feature, without the out-of-vocabulary row."""
    exponents: NDArray[np.float64]
    """[F] exponent of each feature's truncated Pareto."""
    multipliers: NDArray[np.int64]
    """[F] coprime to ``rows``: scatters popularity ranks over row ids, as in a hashed or arbitrarily ordered
    vocabulary."""
    shrinkage: float
    """Exponent by which a row's effect shrinks with its popularity rank."""
    shrinkage_from: float
    """Rank up to which effects stay nearly whole."""
    pair_weights: NDArray[np.float64]
    """[F] length of each feature's hidden vectors: interactions live between a few features, as in real logs."""
    linear: NDArray[np.float64]
    """[D] linear weights of the dense features."""
    quadratic: NDArray[np.float64]
    """[D] weights of (x² − 1)."""
    popularity_drift: float
    """Times that the holder of a popularity rank is replaced, per million samples."""
    effect_drift: float
    """Times that a row's effects are redrawn, per million samples (linear in between)."""


@njit(inline="always")
def _hash(seed, counter, stream):  # type: ignore[no-untyped-def]
    """splitmix64 finaliser over (seed, counter, stream)."""
    x = np.uint64(seed) * _MIX_2 + np.uint64(counter) * _WEYL + np.uint64(stream) * _MIX_1
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    x = x ^ (x >> np.uint64(31))
    # A second round: counters and streams enter linearly, and one round leaves neighbouring streams correlated.
    x = (x + _WEYL) * _MIX_1
    return x ^ (x >> np.uint64(29))


@njit(inline="always")
def _slot(f, epoch, kind):  # type: ignore[no-untyped-def]
    """A stream for each feature below 65,536, epoch and kind below 256."""
    return ((epoch >> 16) << 40) + (f << 24) + ((epoch & 0xFFFF) << 8) + kind


@njit(inline="always")
def _uniform(seed, counter, stream):  # type: ignore[no-untyped-def]
    return float(_hash(seed, counter, stream) >> np.uint64(11)) * _TO_UNIT


@njit(inline="always")
def _field(bits, j):  # type: ignore[no-untyped-def]
    """The j-th 16-bit field of a hash as a number of mean 0 and variance 1."""
    field = float((bits >> np.uint64(16 * j)) & np.uint64(0xFFFF))
    return ((field + 0.5) * (2.0 / 65536.0) - 1.0) * _UNIT_VARIANCE


@njit(nogil=True, cache=True, error_model="numpy")
def draw(  # type: ignore[no-untyped-def]
    teacher,
    start,
    ids,
    dense,
    components,
    label_draws,
):
    """Draws samples ``start … start + N − 1``.

    Args:
        teacher: A :class:`Teacher`.
        start: Number of the first sample.
        ids: int32 [N, F], written: row ids in 1 … R_f (0 is the out-of-vocabulary row and never drawn).
        dense: float32 [N, D], written: standard normal.
        components: float64 [N, 3], written: first-order, pairwise and dense part of the teacher's logit, unscaled.
        label_draws: float64 [N], written: uniform in [0, 1).
    """
    seed = teacher.seed
    num_features = teacher.rows.shape[0]
    num_dense = teacher.linear.shape[0]
    total = np.empty(LATENT_DIM)
    for i in range(ids.shape[0]):
        sample = start + i
        now = sample * 1e-6
        first_order = 0.0
        squares = 0.0
        total[:] = 0.0
        for f in range(num_features):
            rows = teacher.rows[f]
            rank = _rank(_uniform(seed, sample, _SAMPLE_IDS + f), rows, teacher.exponents[f])
            row = (rank * teacher.multipliers[f] + f) % rows
            if teacher.popularity_drift > 0.0:
                phase = _uniform(seed, rank, (f << 8) + _SLOT_PHASE)
                holder = int(now * teacher.popularity_drift + phase)
                if holder > 0:
                    jump = np.int64(_hash(seed, rank * 65_537 + holder, (f << 8) + _SLOT_JUMP) >> np.uint64(2))
                    row = (row + jump % rows) % rows
            ids[i, f] = row + 1
            shrink = (1.0 + rank / teacher.shrinkage_from) ** -teacher.shrinkage
            epoch = 0
            mix = 0.0
            if teacher.effect_drift > 0.0:
                age = now * teacher.effect_drift + _uniform(seed, row, (f << 8) + _SLOT_PHASE + 16)
                epoch = int(age)
                mix = age - epoch
            bits = _hash(seed, row, _slot(f, epoch, _ROW_VECTOR))
            alone = _hash(seed, row, _slot(f, epoch, _ROW_FIRST_ORDER))
            next_bits = np.uint64(0)
            norm = 1.0
            effect = _field(alone, 0)
            if mix > 0.0:
                next_bits = _hash(seed, row, _slot(f, epoch + 1, _ROW_VECTOR))
                next_alone = _hash(seed, row, _slot(f, epoch + 1, _ROW_FIRST_ORDER))
                norm = 1.0 / math.sqrt(mix * mix + (1.0 - mix) * (1.0 - mix))
                effect = ((1.0 - mix) * effect + mix * _field(next_alone, 0)) * norm
            first_order += shrink * effect
            for j in range(LATENT_DIM):
                v = _field(bits, j)
                if mix > 0.0:
                    v = ((1.0 - mix) * v + mix * _field(next_bits, j)) * norm
                v *= shrink * teacher.pair_weights[f]
                total[j] += v
                squares += v * v
        pairs = -squares
        for j in range(LATENT_DIM):
            pairs += total[j] * total[j]
        dense_part = 0.0
        for j in range(0, num_dense, 2):
            # Box-Muller: one pair of uniforms makes two dense features.
            radius = math.sqrt(-2.0 * math.log(1.0 - _uniform(seed, sample, _SAMPLE_DENSE + j)))
            angle = 2.0 * math.pi * _uniform(seed, sample, _SAMPLE_DENSE + j + 1)
            x = radius * math.cos(angle)
            dense[i, j] = x
            dense_part += teacher.linear[j] * x + teacher.quadratic[j] * (x * x - 1.0)
            if j + 1 < num_dense:
                x = radius * math.sin(angle)
                dense[i, j + 1] = x
                dense_part += teacher.linear[j + 1] * x + teacher.quadratic[j + 1] * (x * x - 1.0)
        components[i, FIRST_ORDER] = first_order
        components[i, PAIRWISE] = 0.5 * pairs
        components[i, DENSE] = dense_part
        label_draws[i] = _uniform(seed, sample, _SAMPLE_LABEL)


@njit(inline="always")
def _rank(u, rows, exponent):  # type: ignore[no-untyped-def]
    """Popularity rank 0 … rows − 1: floor of a Pareto truncated to [1, rows + 1), Zipf's law with a closed inverse."""
    power = 1.0 - exponent
    if abs(power) < 1e-9:
        value = math.exp(u * math.log(rows + 1.0))
    else:
        value = (1.0 + u * ((rows + 1.0) ** power - 1.0)) ** (1.0 / power)
    return min(int(value) - 1, rows - 1)
