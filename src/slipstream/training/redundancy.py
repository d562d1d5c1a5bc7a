"""How redundant a data set is: what training on a random share of it costs, which skipping has to beat [ours]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from slipstream.data.store import Store
from slipstream.errors import ConfigError
from slipstream.policies import NoneConfig, RandomConfig
from slipstream.training.config import TrainConfig
from slipstream.training.run import open_data, train

SHARES = (0.125, 0.25, 0.5, 1.0)
"""Shares of the training inputs that are trained on."""
BUDGETS = (0.25, 0.5, 0.7, 0.9)
"""Shares kept for which the cost is said."""
_EXPONENTS = np.arange(0.05, 3.0001, 0.01)


class Fit(BaseModel):
    """auc(n) = a - b n^-c, n the share of the inputs in (0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: float
    """AUC that ever more such data would approach."""
    b: float
    """What all of the inputs fall short of it; 0 when more data does not help."""
    c: float
    """How fast more data helps."""
    error: float
    """Root mean square distance of the measured AUC from the curve."""

    def auc(self, share: float) -> float:
        """AUC at a share."""
        return self.a - self.b * share**-self.c

    def cost(self, budget: float) -> float:
        """AUC that training on a random ``budget`` of the inputs loses against all of them."""
        return self.auc(1.0) - self.auc(budget)


class Measured(BaseModel):
    """Trainings on a random share of the inputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float
    """Of the training inputs."""
    auc: float
    """Mean over the seeds, on the same scored samples."""
    auc_std: float
    """Sample standard deviation over the seeds; 0 with one."""
    seconds: float
    """Mean training time."""


class Redundancy(BaseModel):
    """What a share of the data is worth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seeds: int
    """Trainings at each share."""
    measured: tuple[Measured, ...]
    """Shares rising."""
    fit: Fit
    """The curve through them."""
    cost: dict[float, float]
    """By budget: AUC lost by training on a random share of the inputs, from the curve."""


def redundancy(
    config: TrainConfig, *, seeds: int = 1, shares: Sequence[float] = SHARES, store: Store | None = None
) -> Redundancy:
    """Trains on random shares of the inputs and fits the learning curve.

    Rates are those of the configuration at every share: rates tuned for a small share would make it cost less.

    Args:
        config: The training; its policy is left out.
        seeds: Trainings at each share.
        shares: At least three, 1 among them.
        store: Data that is open already; None: opens ``config.data``.

    Raises:
        ConfigError: ``seeds`` or ``shares`` make no sense, or a training diverged.
        DataError: The data cannot be used.
    """
    if seeds < 1:
        raise ConfigError(f"seeds must be at least 1, got {seeds}")
    if len(set(shares)) < 3 or not all(0.0 < share <= 1.0 for share in shares) or 1.0 not in shares:
        raise ConfigError(f"shares must be at least three in (0, 1], 1 among them, got {list(shares)}")
    config = config.model_copy(update={"out": None})
    store = open_data(config) if store is None else store
    results: dict[float, list[tuple[float, float]]] = {share: [] for share in sorted(set(shares))}
    for seed in range(config.seed, config.seed + seeds):
        for share, found in results.items():
            policy = NoneConfig() if share == 1.0 else RandomConfig(budget=share)
            result = train(config.model_copy(update={"seed": seed, "policy": policy}), store=store)
            found.append((result.quality, result.seconds))
    measured = tuple(_mean(share, found) for share, found in results.items())
    fit = fit_curve({point.share: point.auc for point in measured})
    return Redundancy(seeds=seeds, measured=measured, fit=fit, cost={budget: fit.cost(budget) for budget in BUDGETS})


def _mean(share: float, found: Sequence[tuple[float, float]]) -> Measured:
    aucs, seconds = zip(*found, strict=True)
    std = float(np.std(aucs, ddof=1)) if len(aucs) > 1 else 0.0
    return Measured(share=share, auc=float(np.mean(aucs)), auc_std=std, seconds=float(np.mean(seconds)))


def fit_curve(points: Mapping[float, float]) -> Fit:
    """The curve of least squares with b >= 0, a <= 1 and c in [0.05, 3].

    For each c on a fine grid, a and b solve a linear problem; the best c counts.

    Args:
        points: AUC by share, at least three.
    """
    shares, aucs = np.asarray(list(points)), np.asarray(list(points.values()))
    best: Fit | None = None
    for c in _EXPONENTS:
        powers = shares**-c
        spread = powers - powers.mean()
        b = max(float(-(spread @ aucs) / (spread @ spread)), 0.0)
        a = float(aucs.mean() + b * powers.mean())
        if a > 1.0:
            # The best b among those that keep the limit at 1: the curve is then 1 - b n^-c.
            a, b = 1.0, max(float(((1.0 - aucs) @ powers) / (powers @ powers)), 0.0)
        error = float(np.sqrt(np.mean((a - b * powers - aucs) ** 2)))
        if best is None or error < best.error:
            best = Fit(a=a, b=b, c=float(c), error=error)
    assert best is not None
    return best
