"""What a frontier's points say: against random skipping at the same budget and at the same time, and time saved.

A point is one training: ``policy``, ``budget`` (1 where the policy has none), ``seed``, ``auc``, ``log_loss``,
``calibration``, ``seconds`` (every overhead inside), ``share_of_inputs_trained``, ``share_of_row_updates_skipped``,
``by_popularity``, ``new_items``, ``coverage``, ``gini``, and the rates chosen. Points of data of pairs have ``ndcg``,
``recall`` and ``recall_by_popularity`` too, and are judged by NDCG instead of AUC. Differences are taken between
trainings of the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from slipstream.errors import DataError, first_problem
from slipstream.report.record import Record

Point = Mapping[str, Any]
TOLERANCE = 0.001
"""AUC, or NDCG, below full training within which a point counts as of equal quality."""


class Measure(NamedTuple):
    """The figure that points are judged by."""

    key: str
    """Its name in a point."""
    title: str
    """Its name for people."""


AUC, NDCG = Measure("auc", "AUC"), Measure("ndcg", "NDCG")


def measure(points: Sequence[Point]) -> Measure:
    """NDCG where every point has ranked lists, else AUC."""
    return NDCG if points and all(point.get("ndcg") is not None for point in points) else AUC


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Bucket(_Part):
    auc: FiniteFloat | None


class _Point(_Part):
    """What is read of a point."""

    policy: str
    budget: FiniteFloat
    seed: int
    auc: FiniteFloat | None
    log_loss: FiniteFloat
    calibration: FiniteFloat
    seconds: float = Field(gt=0.0, allow_inf_nan=False)
    share_of_inputs_trained: FiniteFloat
    share_of_row_updates_skipped: FiniteFloat
    by_popularity: dict[str, _Bucket]
    new_items: dict[str, _Bucket] = {}
    ndcg: FiniteFloat | None = None
    recall: FiniteFloat | None = None
    recall_by_popularity: dict[str, FiniteFloat | None] | None = None
    coverage: FiniteFloat | None = None
    gini: FiniteFloat | None = None


class _Conditions(_Part):
    left_out: dict[str, str] = Field(default={}, alias="left out")


class _Frontier(_Part):
    """What is read of a record."""

    conditions: _Conditions
    points: list[_Point] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_quality(self) -> _Frontier:
        if any(point.ndcg is None for point in self.points) and any(point.auc is None for point in self.points):
            raise ValueError("points: one has neither an AUC nor, as all others, an NDCG")
        if all(point.ndcg is not None for point in self.points) and any(point.recall is None for point in self.points):
            raise ValueError("points: one has an NDCG and no recall")
        return self


def load_frontier(path: Path) -> Record:
    """Reads the record of a frontier.

    Raises:
        DataError: The file is not there, or holds something else.
    """
    record = Record.load(path)
    try:
        _Frontier.model_validate({"conditions": record.conditions, "points": record.points})
    except ValidationError as error:
        reason = f"is no record of a frontier ({first_problem(error)})"
        raise DataError(reason, file=path, remedy="name records of bench frontier") from error
    return record


class Spread(NamedTuple):
    """Mean and spread of a figure over the seeds."""

    mean: float
    std: float
    """Sample standard deviation; NaN with one seed."""
    low: float
    """Least of the seeds."""
    high: float
    """Greatest of the seeds."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return cls(float(np.mean(values)), std, min(values), max(values))

    @property
    def bar(self) -> float:
        """Half the length of what is drawn for the spread: none of one seed."""
        return 0.0 if math.isnan(self.std) else self.std

    def __str__(self) -> str:
        """Of a difference."""
        return f"{self.mean:+.4f}, one seed" if math.isnan(self.std) else f"{self.mean:+.4f} ± {self.std:.4f}"


def grouped(points: Sequence[Point]) -> dict[tuple[str, float], dict[int, Point]]:
    """Points by policy and budget, then by seed; policies in their order, budgets rising."""
    policies = list(dict.fromkeys(point["policy"] for point in points))
    groups: dict[tuple[str, float], dict[int, Point]] = {}
    for point in sorted(points, key=lambda point: (policies.index(point["policy"]), point["budget"], point["seed"])):
        groups.setdefault((point["policy"], point["budget"]), {})[point["seed"]] = point
    return groups


def against_random(points: Sequence[Point], policy: str, budget: float) -> Spread | None:
    """AUC (NDCG) above random skipping at the same budget, seed by seed.

    Returns:
        None where random has no such budget, or shares no seed.
    """
    groups, by = grouped(points), measure(points).key
    ours, control = groups.get((policy, budget), {}), groups.get(("random", budget), {})
    differences = [float(ours[seed][by] - control[seed][by]) for seed in ours if seed in control]
    return Spread.of(differences) if differences else None


def against_random_at_equal_time(points: Sequence[Point], policy: str, budget: float) -> Spread | None:
    """AUC (NDCG) above random skipping that takes as long, seed by seed.

    What random skipping and full training reach in that time: the best of those that take no
    longer, linearly interpolated by seconds towards the next better one.

    Returns:
        None where a seed is faster than all of them: the mean of the others would be one of seeds chosen by their time.
    """
    groups, by = grouped(points), measure(points).key
    differences: list[float] = []
    for seed, point in groups.get((policy, budget), {}).items():
        line = [
            (float(group[seed]["seconds"]), float(group[seed][by]))
            for (name, _), group in groups.items()
            if _is_control(name) and seed in group
        ]
        if not line or min(line)[0] > point["seconds"]:
            return None
        seconds, quality = np.asarray(sorted(line)).T
        reached = np.interp(point["seconds"], seconds, np.maximum.accumulate(quality))
        differences.append(float(point[by] - reached))
    return Spread.of(differences) if differences else None


def _is_control(policy: str) -> bool:
    return policy == "none" or policy.startswith("random")


class TimeSaved(NamedTuple):
    """The fastest point of a policy whose mean AUC (NDCG) is within the tolerance of full training's."""

    policy: str
    budget: float
    ratio: float
    """Median over the seeds of full training's seconds ÷ the point's."""
    difference: float
    """Mean AUC (NDCG) less full training's."""
    error: float
    """Standard error of the difference over the seeds; NaN of one seed."""


def time_saved(points: Sequence[Point], tolerance: float = TOLERANCE) -> list[TimeSaved]:
    """The time that each policy saves at equal quality, if it has such a point; nothing is interpolated.

    Args:
        points: At least full training and one other.
        tolerance: AUC (NDCG) that may be lost.
    """
    groups, by = grouped(points), measure(points).key
    full = next((group for (name, _), group in groups.items() if name == "none"), {})
    best: dict[str, TimeSaved] = {}
    for (policy, budget), group in groups.items():
        seeds = [seed for seed in group if seed in full]
        if policy == "none" or not seeds:
            continue
        differences = [group[seed][by] - full[seed][by] for seed in seeds]
        difference = float(np.mean(differences))
        ratio = float(np.median([full[seed]["seconds"] / group[seed]["seconds"] for seed in seeds]))
        if difference >= -tolerance and (policy not in best or ratio > best[policy].ratio):
            error = float(np.std(differences, ddof=1)) / len(seeds) ** 0.5 if len(seeds) > 1 else math.nan
            best[policy] = TimeSaved(policy, budget, ratio, difference, error)
    return list(best.values())


def closest(points: Sequence[Point]) -> dict[str, tuple[float, float]]:
    """Of each policy that skips: budget and mean difference to full training of its point closest in quality."""
    groups, by = grouped(points), measure(points).key
    full = next((group for (name, _), group in groups.items() if name == "none"), {})
    found: dict[str, tuple[float, float]] = {}
    for (policy, budget), group in groups.items():
        seeds = [seed for seed in group if seed in full]
        if policy == "none" or not seeds:
            continue
        difference = float(np.mean([group[seed][by] - full[seed][by] for seed in seeds]))
        if policy not in found or abs(difference) < abs(found[policy][1]):
            found[policy] = (budget, difference)
    return found


def summary(points: Sequence[Point]) -> list[dict[str, Any]]:
    """One row for each policy and budget, means over its seeds."""
    rows: list[dict[str, Any]] = []
    by = measure(points)
    lists = [name for name in ("coverage", "gini") if all(point.get(name) is not None for point in points)]
    for (policy, budget), group in grouped(points).items():
        members = list(group.values())
        quality = Spread.of([point[by.key] for point in members])
        row: dict[str, Any] = {
            "policy": policy,
            "budget": budget,
            "seeds": len(members),
            by.title: round(quality.mean, 5),
            f"{by.title} std": "–" if math.isnan(quality.std) else round(quality.std, 5),
        }
        if by is NDCG:
            row["recall"] = _mean(members, "recall")
        else:
            row |= {"log-loss": _mean(members, "log_loss"), "calibration": _mean(members, "calibration")}
        row |= {
            "seconds": round(float(np.median([point["seconds"] for point in members])), 3),
            "inputs": _mean(members, "share_of_inputs_trained"),
            "skipped": _mean(members, "share_of_row_updates_skipped"),
            **{bucket: "–" if value is None else value for bucket, value in by_bucket(members).items()},
            **{name: _mean(members, name) for name in lists},
        }
        equal_share = against_random(points, policy, budget) if policy != "random" else None
        equal_time = against_random_at_equal_time(points, policy, budget) if not _is_control(policy) else None
        for name, spread in (("above random", equal_share), ("same time", equal_time)):
            row[name] = "–" if spread is None else str(spread)
        rows.append(row)
    return rows


def figures_of(saved: Sequence[TimeSaved]) -> dict[str, float]:
    """What the equal quality of the ratios is: the mean difference to full training and its standard error."""
    figures: dict[str, float] = {}
    for entry in saved:
        figures[f"equal quality, {entry.policy} {entry.budget:g}"] = round(entry.difference, 5)
        if not math.isnan(entry.error):
            figures[f"equal quality, {entry.policy} {entry.budget:g}, standard error"] = round(entry.error, 5)
    return figures


def derived(points: Sequence[Point]) -> dict[str, Any]:
    """What a record says of its points: ``ratios``, ``quality`` and ``rows``.

    Args:
        points: At least one of full training.
    """
    by, saved = measure(points), time_saved(points)
    full = _mean([point for point in points if point["policy"] == "none"], by.key)
    quality = {f"{by.title} of full training": full, **figures_of(saved)}
    for policy, (budget, gap) in closest(points).items():
        quality[f"closest, {policy} {budget:g}"] = round(gap, 5)
    return {
        "ratios": {f"equal quality, {entry.policy} {entry.budget:g}": round(entry.ratio, 4) for entry in saved},
        "quality": quality,
        "rows": summary(points),
    }


def by_bucket(points: Sequence[Point]) -> dict[str, float | None]:
    """AUC, or recall of ranked lists, for the head, the torso, the tail and new items, means over the points.

    None where a point has none: samples of one class, or no user with such an item.
    """
    found: dict[str, list[float | None]] = {}
    for point in points:
        buckets: Mapping[str, Any] = point.get("recall_by_popularity") or {
            name: scores["auc"] for name, scores in {**point["by_popularity"], **point.get("new_items", {})}.items()
        }
        for name, value in buckets.items():
            found.setdefault(name, []).append(value)
    return {
        name: None if None in values else round(float(np.mean(values)), 5)  # type: ignore[arg-type]
        for name, values in found.items()
    }


def _mean(points: Sequence[Point], name: str) -> float:
    return round(float(np.mean([point[name] for point in points])), 5)
