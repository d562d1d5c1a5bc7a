"""How cost per sample grows: with rows, samples, features and positives; what loader and policies add to a step.

Each part is measured in one process with its sizes in turn where they fit beside each other. A curve is fitted by a
straight line in log-log coordinates: its slope is the exponent of cost ~ size^slope; the slopes between neighbouring
sizes say where it bends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slipstream.bench import BenchOptions, workload
from slipstream.bench.scale_options import PARTS, ScaleOptions
from slipstream.report.machine import commit
from slipstream.report.record import Record

Rows = list[dict[str, Any]]

ASKED: Mapping[str, tuple[str, float, float]] = {
    "rows": ("DLRM step", 1e5, 1e7),
    "samples": ("training", 1e6, 1e8),
}
"""By part: the series, and the sizes between which growth is judged."""


def run(options: BenchOptions) -> Record:
    """Measure.

    Args:
        options: ``quick`` stops at 10^6 rows and 10^6 samples. ``scale`` says which parts.

    Returns:
        ``rows``: ``part``, ``series``, ``size`` and seconds a sample (p20, p50, p80). ``ratios``: growth of the cost
        per sample between two sizes (1: none), ``<series>/<from>_to_<to>_<part>``. ``quality``: slopes of the fitted
        lines, and overheads as a share of a step.
    """
    wanted = options.scale or ScaleOptions()
    rows: Rows = []
    quality: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-", dir=options.cache) as temporary:
        for part in (part for part in PARTS if part in wanted.parts):
            found, figures = _measure(part)(options, wanted, Path(temporary))
            rows += [{"part": part, **row} for row in found]
            quality |= figures
    record = Record(
        name="scale",
        dataset=f"random ids, {workload.describe(workload.cardinalities())} (or scaled to the size named), "
        f"seed {options.seed}; positives: synthetic samples with a teacher",
        conditions={
            "quick": options.quick,
            "unit": "seconds a sample",
            "batch_size": workload.BATCH_SIZE,
            "threads": torch.get_num_threads(),
            "optimizer": "row-wise Adagrad",
            "ratios": "cost per sample at the larger size ÷ at the smaller: 1 is no growth",
            "parts": {part: commit() or "" for part in wanted.parts},
        },
        quality=quality,
        rows=rows,
    )
    if wanted.keep is not None and wanted.keep.exists():
        _take_over(record, Record.load(wanted.keep), wanted.parts)
    record.ratios = growth(record.rows)
    record.quality |= slopes(record.rows)
    return record


def _measure(part: str) -> Callable[[BenchOptions, ScaleOptions, Path], tuple[Rows, dict[str, float]]]:
    from slipstream.bench import scale_beyond, scale_data, scale_overhead, scale_tables

    return {
        "rows": scale_tables.rows,
        "samples": scale_data.samples,
        "features": scale_tables.features,
        "positives": scale_data.positives,
        "overhead": scale_overhead.overhead,
        "beyond": scale_beyond.beyond,
    }[part]


def _take_over(record: Record, former: Record, parts: Sequence[str]) -> None:
    """Adds what an earlier record holds of other parts, with the commit that each was measured at."""
    if bool(former.conditions.get("quick")) != bool(record.conditions["quick"]):
        return
    kept = [row for row in former.rows if row["part"] not in parts]
    record.rows = sorted([*kept, *record.rows], key=lambda row: PARTS.index(row["part"]))
    record.conditions["parts"] = former.conditions["parts"] | record.conditions["parts"]
    old = {key: value for key, value in former.quality.items() if key.split(":")[0] not in parts}
    record.quality = old | record.quality


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """By part and series: size and median seconds a sample, the sizes rising; series without a size are left out."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if "size" in row:
            found.setdefault((row["part"], row["series"]), []).append((float(row["size"]), float(row["p50"])))
    return {key: sorted(points) for key, points in found.items()}


def slopes(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """For each curve the slope of its line in log-log coordinates, and of its steepest piece with where that lies."""
    found: dict[str, float] = {}
    for (part, series), points in curves(rows).items():
        if len(points) < 2:
            continue
        size, cost = np.log(np.array(points)).T
        found[f"{part}: slope, {series}"] = round(float(np.polyfit(size, cost, 1)[0]), 4)
        pieces = [((b[1] - a[1]) / (b[0] - a[0]), a[0], b[0]) for a, b in pairwise(np.log(np.array(points)).tolist())]
        steepest, left, right = max(pieces)
        where = f"{np.exp(left):.3g} to {np.exp(right):.3g}"
        if len(pieces) > 1:
            found[f"{part}: steepest slope, {series}, {where}"] = round(float(steepest), 4)
    return found


def growth(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Cost per sample at a curve's largest size ÷ at its smallest, and between the sizes that are asked about."""
    found: dict[str, float] = {}
    for (part, series), points in curves(rows).items():
        pairs = [(points[0][0], points[-1][0])] if len(points) > 1 else []
        asked = ASKED.get(part)
        if asked is not None and asked[0] == series:
            pairs.append(asked[1:])
        cost = dict(points)
        for smaller, larger in pairs:
            if smaller in cost and larger in cost and smaller != larger:
                found[f"{series}/{smaller:.4g}_to_{larger:.4g}_{part}"] = round(cost[larger] / cost[smaller], 3)
    return found
