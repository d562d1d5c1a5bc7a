"""What a study of frequent updates says, and its page: continuing against retraining and against a stale model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from slipstream.errors import DataError
from slipstream.report import plots
from slipstream.report.frontier import Spread
from slipstream.report.page import figure, measured, page, table
from slipstream.report.record import Record

Point = Mapping[str, Any]
CONTINUED, RETRAINED, STALE = "continued", "retrained", "stale"
"""Ways of keeping a model: trained on with each slice, trained from scratch on all so far, left as it is."""


def _grouped(points: Sequence[Point]) -> dict[tuple[str, str], dict[int, list[Point]]]:
    """Points by policy and way, then by seed, in the order of the slices."""
    groups: dict[tuple[str, str], dict[int, list[Point]]] = {}
    for point in points:
        groups.setdefault((point["policy"], point["way"]), {}).setdefault(point["seed"], []).append(point)
    return groups


def _mean(points: Sequence[Point], key: str) -> float:
    return float(np.mean([point[key] for point in points]))


def _gap(ours: Mapping[int, list[Point]], theirs: Mapping[int, list[Point]]) -> Spread:
    """Mean AUC over the slices less another's, seed by seed."""
    return Spread.of([_mean(ours[seed], "auc") - _mean(theirs[seed], "auc") for seed in ours if seed in theirs])


def times(points: Sequence[Point]) -> dict[str, float]:
    """Time of retraining ÷ time of continuing, all slices together, median over the seeds, by policy."""
    groups = _grouped(points)
    ratios: dict[str, float] = {}
    for (policy, way), seeds in groups.items():
        if way == CONTINUED:
            retrained = groups[policy, RETRAINED]
            ratios[policy] = float(
                np.median([_mean(retrained[seed], "seconds") / _mean(seeds[seed], "seconds") for seed in seeds])
            )
    return ratios


def differences(points: Sequence[Point]) -> dict[str, Spread]:
    """AUC on the next slice, less retraining's under the same policy; and under a policy less full retraining's."""
    groups = _grouped(points)
    found: dict[str, Spread] = {}
    for (policy, way), seeds in groups.items():
        if way != RETRAINED:
            found[f"{policy}, {way} less retrained"] = _gap(seeds, groups[policy, RETRAINED])
        if way == CONTINUED and policy != "none":
            found[f"{policy} {way} less full {RETRAINED}"] = _gap(seeds, groups["none", RETRAINED])
    return found


def summary(points: Sequence[Point]) -> list[dict[str, Any]]:
    """One row for each policy and way, means over the slices and seeds."""
    groups = _grouped(points)
    rows: list[dict[str, Any]] = []
    for (policy, way), seeds in groups.items():
        members = [point for group in seeds.values() for point in group]
        gap = _gap(seeds, groups["none", RETRAINED])
        rows.append(
            {
                "policy": policy,
                "way": way,
                "seeds": len(seeds),
                "AUC": round(_mean(members, "auc"), 5),
                "log-loss": round(_mean(members, "log_loss"), 5),
                "calibration": round(_mean(members, "calibration"), 4),
                "to full retrained": str(gap),
                "samples a slice": round(_mean(members, "samples")),
                "seconds a slice": round(float(np.median([_mean(group, "seconds") for group in seeds.values()])), 3),
            }
        )
    return rows


def continue_page(record: Record, *, title: str = "Slipstream: frequent updates") -> str:
    """The page of a study.

    Raises:
        DataError: The record is of something else.
    """
    if not record.points or "way" not in record.points[0]:
        raise DataError(f"record {record.name} is no study of updates", remedy="name a record of bench continue")
    parts = [
        f"<h1>{escape(title)}</h1>",
        '<p class="soft">Each model is scored on the slice after the last one that it saw. Continued: trained on with '
        "each slice, with its optimizer's and policy's state; retrained: trained from scratch on all slices so far; "
        "stale: trained on the first slice alone. Lines are means over the seeds; seconds are those of training. "
        "To full retrained: AUC less that of retraining without skipping.</p>",
        f'<p class="soft">{escape(record.dataset)}</p>',
        measured(record),
        f"<ul>{''.join(f'<li>{escape(line)}.</li>' for line in _sentences(record.points))}</ul>",
    ]
    groups = _grouped(record.points)
    for policy in dict.fromkeys(policy for policy, _ in groups):
        drawn: list[str] = []
        for key, caption in (("auc", "AUC on the next slice"), ("seconds", "seconds of the update")):
            series = {
                way: _line(seeds, key)
                for (of, way), seeds in groups.items()
                if of == policy and (way != STALE or key == "auc")
            }
            drawn.append(figure(caption, plots.lines(series, x="slice", y=caption, name=f"{policy} {key}")))
        parts += [f"<h2>{escape(policy)}</h2>", f'<div class="plots">{"".join(drawn)}</div>']
    rows = summary(record.points)
    titles = list(rows[0])
    cells = [[str(row[name]) for name in titles] for row in rows]
    parts.append(table(titles, cells, [name not in ("policy", "way") for name in titles]))
    return page(title, parts)


def _sentences(points: Sequence[Point]) -> list[str]:
    lines = [f"{policy}: retraining takes {ratio:.2f} times as long" for policy, ratio in times(points).items()]
    return lines + [f"AUC, {name}: {gap}" for name, gap in differences(points).items()]


def _line(seeds: Mapping[int, list[Point]], key: str) -> tuple[list[float], list[float]]:
    first = next(iter(seeds.values()))
    values = np.mean([[point[key] for point in group] for group in seeds.values()], axis=0)
    return [float(point["slice"]) for point in first], values.tolist()
