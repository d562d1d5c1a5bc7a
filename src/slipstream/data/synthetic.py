"""Synthetic click logs: Criteo's cardinalities, a chosen skew, and a hidden teacher that makes the labels.

For questions that the bundled real data is too small to answer. Results on it are always labelled synthetic.
[ours] throughout, no published generator is reproduced; the default preset is *fitted* to what is published of Criteo
Kaggle, and the fit is kept in ``benchmarks/results/synthetic_fit.json`` (``slipstream bench synthetic-fit``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slipstream.data.schema import FeatureInfo
from slipstream.data.store import Store, StoreWriter
from slipstream.data.synthetic_config import CRITEO_KAGGLE_CARDINALITIES, PRESETS, Preset, SyntheticConfig
from slipstream.data.synthetic_teacher import DENSE, FIRST_ORDER, PAIRWISE, Teacher, draw
from slipstream.errors import ConfigError

__all__ = [
    "CRITEO_KAGGLE_CARDINALITIES",
    "PRESETS",
    "Generator",
    "Preset",
    "Samples",
    "SyntheticConfig",
    "generate",
]

_PAIRING_FEATURES = 4.0
"""Features between which most of the pairwise effects lie: weights fall by e over this many features, in an order
drawn per seed."""

_PILOT_SAMPLES = 200_000
"""Samples from which the parts of the logit are scaled and the base rate is set."""

_START_OF_TIME = 1_700_000_000
"""Unix seconds of the first sample."""


class Samples(NamedTuple):
    """Consecutive samples. N samples, F features, D dense features."""

    ids: NDArray[np.int32]
    """[N, F] row ids, 1 … rows of the feature."""
    dense: NDArray[np.float32]
    """[N, D]."""
    labels: NDArray[np.uint8]
    """[N] 0 or 1."""
    time: NDArray[np.int64]
    """[N] unix seconds, never falling."""
    probability: NDArray[np.float64]
    """[N] the teacher's own probability: no model can rank better than it."""


class Generator:
    """Draws samples of a configuration. Sample i is the same however it is asked for.

    Args:
        config: What to generate.
    """

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        rng = np.random.default_rng(config.seed)
        rows = np.asarray(config.rows, dtype=np.int64)
        self._teacher = Teacher(
            seed=int(rng.integers(2**62)),
            rows=rows,
            exponents=np.asarray(config.exponents, dtype=np.float64),
            multipliers=np.asarray([_coprime(rng, int(r)) for r in rows], dtype=np.int64),
            shrinkage=config.tail_shrinkage,
            shrinkage_from=config.tail_from,
            pair_weights=np.exp(-rng.permutation(rows.size) / _PAIRING_FEATURES),
            linear=rng.standard_normal(config.num_dense),
            quadratic=0.3 * rng.standard_normal(config.num_dense),
            popularity_drift=config.popularity_drift,
            effect_drift=config.effect_drift,
        )
        self._scales, self._intercept = self._calibrate()

    def _calibrate(self) -> tuple[NDArray[np.float64], float]:
        """Scales of the three parts of the logit, and the intercept that gives the base rate."""
        config = self.config
        if config.popularity_drift or config.effect_drift:
            # Effects change over the data, so the rate is set on samples from all of it.
            blocks = np.linspace(0, config.num_samples, 21)[:-1].astype(np.int64)
            components = np.concatenate([self._draw(int(b), _PILOT_SAMPLES // 20)[2] for b in blocks])
        else:
            # Samples that no data set reaches: the teacher is the same for any num_samples.
            components = self._draw(2**40, _PILOT_SAMPLES)[2]
        wanted = np.zeros(3)
        wanted[FIRST_ORDER], wanted[PAIRWISE], wanted[DENSE] = (
            config.first_order_std,
            config.pairwise_std,
            config.dense_std,
        )
        spread = components.std(axis=0)
        scales = np.divide(wanted, spread, out=np.zeros(3), where=spread > 0.0)
        logits = components @ scales
        low, high = -60.0, 60.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            if _sigmoid(logits + middle).mean() < config.base_rate:
                low = middle
            else:
                high = middle
        return scales, 0.5 * (low + high)

    def _draw(
        self, start: int, count: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
        ids = np.empty((count, len(self.config.cardinalities)), dtype=np.int32)
        dense = np.empty((count, self.config.num_dense), dtype=np.float32)
        components = np.empty((count, 3))
        label_draws = np.empty(count)
        draw(self._teacher, start, ids, dense, components, label_draws)
        return ids, dense, components, label_draws

    def samples(self, start: int, stop: int) -> Samples:
        """Samples ``start … stop − 1``.

        Raises:
            ConfigError: The range is empty or outside the configuration's samples.
        """
        if not 0 <= start < stop <= self.config.num_samples:
            raise ConfigError(f"samples must be a range within [0, {self.config.num_samples}], got [{start}, {stop})")
        ids, dense, components, label_draws = self._draw(start, stop - start)
        # Term by term: a matrix product rounds a single sample otherwise than the same one among others.
        first_order, pairwise, of_dense = (components * self._scales).T
        probability = _sigmoid(first_order + pairwise + of_dense + self._intercept)
        seconds = np.arange(start, stop, dtype=np.float64) * (self.config.days * 86_400.0 / self.config.num_samples)
        return Samples(
            ids=ids,
            dense=dense,
            labels=(label_draws < probability).astype(np.uint8),
            time=_START_OF_TIME + seconds.astype(np.int64),
            probability=probability,
        )

    def chunks(self, size: int = 131_072, *, threads: int = 2) -> Iterator[Samples]:
        """All samples in order, ``size`` at a time.

        Args:
            size: Samples a piece; the last may have fewer.
            threads: Plain threads that draw ahead (no OpenMP pool is touched).
        """
        starts = range(0, self.config.num_samples, size)
        with ThreadPoolExecutor(threads) as pool:
            ahead = [pool.submit(self.samples, s, min(s + size, self.config.num_samples)) for s in starts[:threads]]
            for s in starts[threads:]:
                ready = ahead.pop(0).result()
                ahead.append(pool.submit(self.samples, s, min(s + size, self.config.num_samples)))
                yield ready
            for future in ahead:
                yield future.result()


def generate(
    out: str | Path, config: SyntheticConfig | None = None, *, overwrite: bool = False, threads: int = 2
) -> Store:
    """Writes a synthetic data set as a store, in constant memory.

    Features are named C1 … and dense columns I1 …, as Criteo's; the store's provenance holds the configuration.

    Args:
        out: The store's folder.
        config: What to generate; None: the default preset.
        overwrite: Replace a store that is already there.
        threads: Threads that draw while one writes.

    Raises:
        DataError: Something is already at ``out``.
    """
    config = config or SyntheticConfig()
    features = [FeatureInfo(name=f"C{i}", num_rows=rows + 1) for i, rows in enumerate(config.rows, start=1)]
    dense = [f"I{i}" for i in range(1, config.num_dense + 1)]
    with StoreWriter(out, features, dense=dense, has_time=True, overwrite=overwrite) as writer:
        for samples in Generator(config).chunks(threads=threads):
            writer.append(samples.ids, samples.dense, samples.labels, samples.time)
        return writer.commit({"format": "synthetic", "config": config.model_dump(mode="json")})


def _coprime(rng: np.random.Generator, rows: int) -> int:
    """A multiplier that maps ranks one to one onto rows; small enough that rank · multiplier stays within int64."""
    while True:
        candidate = int(rng.integers(1, 2**31))
        if math.gcd(candidate, rows) == 1:
            return candidate


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-logits))
