"""What a frontier's points say: against random skipping at the same budget and at the same time, and time saved.

A point is one training: ``policy``, ``budget`` (1 where the policy has none), ``seed``, ``auc``, ``log_loss``,
``calibration``, ``seconds`` (every overhead inside), ``share_of_inputs_trained``, ``share_of_row_updates_skipped``,
``by_popularity``, and the rates chosen. Differences are taken between trainings of the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Point = Mapping[str, Any]
TOLERANCE = 0.001
"""AUC below full training within which a point counts as of equal quality."""


class Spread(NamedTuple):
    """Mean and spread of a figure over the seeds."""

    mean: float
    std: float
    """Sample standard deviation; 0 with one seed."""
    low: float
    """Least of the seeds."""
    high: float
    """Greatest of the seeds."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return cls(float(np.mean(values)), std, min(values), max(values))


def grouped(points: Sequence[Point]) -> dict[tuple[str, float], dict[int, Point]]:
    """Points by policy and budget, then by seed; policies in their order, budgets rising."""
    policies = list(dict.fromkeys(point["policy"] for point in points))
    groups: dict[tuple[str, float], dict[int, Point]] = {}
    for point in sorted(points, key=lambda point: (policies.index(point["policy"]), point["budget"], point["seed"])):
        groups.setdefault((point["policy"], point["budget"]), {})[point["seed"]] = point
    return groups


def against_random(points: Sequence[Point], policy: str, budget: float) -> Spread | None:
    """AUC above random skipping at the same budget, seed by seed.

    Returns:
        None where random has no such budget, or shares no seed.
    """
    groups = grouped(points)
    ours, control = groups.get((policy, budget), {}), groups.get(("random", budget), {})
    differences = [float(ours[seed]["auc"] - control[seed]["auc"]) for seed in ours if seed in control]
    return Spread.of(differences) if differences else None


def against_random_at_equal_time(points: Sequence[Point], policy: str, budget: float) -> Spread | None:
    """AUC above random skipping that takes as long, seed by seed.

    What random skipping (with either batch size) and full training reach in that time: the best of those that take no
    longer, linearly interpolated by seconds towards the next better one.

    Returns:
        None where every seed is faster than all of them.
    """
    groups = grouped(points)
    differences: list[float] = []
    for seed, point in groups.get((policy, budget), {}).items():
        line = [
            (float(group[seed]["seconds"]), float(group[seed]["auc"]))
            for (name, _), group in groups.items()
            if _is_control(name) and seed in group
        ]
        if line and min(line)[0] <= point["seconds"]:
            seconds, auc = np.asarray(sorted(line)).T
            reached = np.interp(point["seconds"], seconds, np.maximum.accumulate(auc))
            differences.append(float(point["auc"] - reached))
    return Spread.of(differences) if differences else None


def _is_control(policy: str) -> bool:
    return policy == "none" or policy.startswith("random")


class TimeSaved(NamedTuple):
    """The fastest point of a policy whose mean AUC is within the tolerance of full training's."""

    policy: str
    budget: float
    ratio: float
    """Median over the seeds of full training's seconds ÷ the point's."""
    auc_difference: float
    """Mean AUC less full training's."""


def time_saved(points: Sequence[Point], tolerance: float = TOLERANCE) -> list[TimeSaved]:
    """The time that each policy saves at equal quality, if it has such a point; nothing is interpolated.

    Args:
        points: At least full training and one other.
        tolerance: AUC that may be lost.
    """
    groups = grouped(points)
    full = next((group for (name, _), group in groups.items() if name == "none"), {})
    best: dict[str, TimeSaved] = {}
    for (policy, budget), group in groups.items():
        seeds = [seed for seed in group if seed in full]
        if policy == "none" or not seeds:
            continue
        difference = float(np.mean([group[seed]["auc"] - full[seed]["auc"] for seed in seeds]))
        ratio = float(np.median([full[seed]["seconds"] / group[seed]["seconds"] for seed in seeds]))
        if difference >= -tolerance and (policy not in best or ratio > best[policy].ratio):
            best[policy] = TimeSaved(policy, budget, ratio, difference)
    return list(best.values())


def closest(points: Sequence[Point]) -> dict[str, tuple[float, float]]:
    """Of each policy that skips: budget and mean AUC difference to full training of its point closest in quality."""
    groups = grouped(points)
    full = next((group for (name, _), group in groups.items() if name == "none"), {})
    found: dict[str, tuple[float, float]] = {}
    for (policy, budget), group in groups.items():
        seeds = [seed for seed in group if seed in full]
        if policy == "none" or not seeds:
            continue
        difference = float(np.mean([group[seed]["auc"] - full[seed]["auc"] for seed in seeds]))
        if policy not in found or difference > found[policy][1]:
            found[policy] = (budget, difference)
    return found


def summary(points: Sequence[Point]) -> list[dict[str, Any]]:
    """One row for each policy and budget, means over its seeds."""
    rows: list[dict[str, Any]] = []
    for (policy, budget), group in grouped(points).items():
        members = list(group.values())
        auc = Spread.of([point["auc"] for point in members])
        row: dict[str, Any] = {
            "policy": policy,
            "budget": budget,
            "seeds": len(members),
            "AUC": round(auc.mean, 5),
            "AUC std": round(auc.std, 5),
            "log-loss": _mean(members, "log_loss"),
            "calibration": _mean(members, "calibration"),
            "seconds": round(float(np.median([point["seconds"] for point in members])), 3),
            "inputs": _mean(members, "share_of_inputs_trained"),
            "skipped": _mean(members, "share_of_row_updates_skipped"),
        }
        equal_share = against_random(points, policy, budget) if policy != "random" else None
        equal_time = against_random_at_equal_time(points, policy, budget) if not _is_control(policy) else None
        for name, spread in (("above random", equal_share), ("same time", equal_time)):
            row[name] = "–" if spread is None else f"{spread.mean:+.4f} ± {spread.std:.4f}"
        rows.append(row)
    return rows


def _mean(points: Sequence[Point], name: str) -> float:
    return round(float(np.mean([point[name] for point in points])), 5)
