"""The page of frontiers: quality against time, and against random skipping, one section for each data set."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from slipstream.errors import DataError
from slipstream.report import plots
from slipstream.report.frontier import (
    TOLERANCE,
    Spread,
    against_random,
    against_random_at_equal_time,
    closest,
    grouped,
    summary,
    time_saved,
)
from slipstream.report.html import figure, page, table
from slipstream.report.record import Record

Series = dict[str, list[tuple[float, float, float]]]


def frontier_page(records: Sequence[Record], *, title: str = "Slipstream: quality against time") -> str:
    """One page for all frontiers.

    Args:
        records: At least one, each with ``points``.
        title: Heading.

    Raises:
        DataError: A record is not of a frontier.
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        '<p class="soft">Seconds are those of the training with every overhead; AUC is of samples it never saw. Bars '
        "are standard deviations over the seeds; differences are taken seed by seed. Columns: inputs: share trained "
        "on; skipped: share of their row updates; above random: AUC over random inputs at the same budget; same time: "
        "AUC over random inputs that take as long or full training, interpolated.</p>",
    ]
    for number, record in enumerate(records):
        if not record.points:
            raise DataError(f"record {record.name} holds no points", remedy="name records of bench frontier")
        parts += _section(record, f"{number} {record.name}")
    return page(title, parts)


def _section(record: Record, name: str) -> list[str]:
    points = record.points
    rows = summary(points)
    titles = list(rows[0])
    short = {key: value for key, value in record.conditions.items() if isinstance(value, int | float | str)}
    conditions = ", ".join(f"{key}: {value}" for key, value in short.items() if value is not False)
    machine = f"{record.machine.processor}, {record.machine.cores} cores, {record.machine.threads} threads"
    return [
        f"<h2>{escape(record.dataset)}</h2>",
        f'<p class="soft">{escape(conditions)}.</p><p class="soft">{escape(machine)}; commit '
        f"{escape(record.commit or '–')}; {escape(record.date)}; {escape(record.command)}</p>",
        f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in findings(record))}</ul>",
        f'<div class="plots">{"".join(_figures(points, name))}</div>',
        table(
            titles,
            [[_cell(row[title]) for title in titles] for row in rows],
            [not isinstance(rows[0][title], str) or title in ("above random", "same time") for title in titles],
        ),
    ]


def findings(record: Record) -> list[str]:
    """What the points say, in sentences: time saved at equal quality, who beats random, what was left out."""
    points = record.points
    saved = {entry.policy: entry for entry in time_saved(points)}
    sentences = [
        f"{entry.policy} at budget {entry.budget:g} takes 1/{entry.ratio:.2f} of full training's time at an AUC "
        f"{entry.auc_difference:+.4f} from it."
        for entry in saved.values()
    ]
    sentences += [
        f"{policy} has no point within {TOLERANCE} AUC of full training; its closest, budget {budget:g}, is {gap:+.4f}."
        for policy, (budget, gap) in closest(points).items()
        if policy not in saved
    ]
    for policy, budget in grouped(points):
        spread = None if policy in ("none", "random") else against_random(points, policy, budget)
        if spread is not None:
            beyond = "beyond the spread" if abs(spread.mean) > spread.std and len(points) > 1 else "within the spread"
            sentences.append(f"{policy} against random at budget {budget:g}: AUC {spread.mean:+.4f}, {beyond}.")
    sentences += [f"Left out: {place}: {reason}" for place, reason in record.conditions.get("left out", {}).items()]
    return sentences


def _figures(points: Sequence[dict[str, Any]], name: str) -> list[str]:
    quality: Series = {}
    share: Series = {}
    at_time: Series = {}
    for (policy, budget), group in grouped(points).items():
        auc = Spread.of([point["auc"] for point in group.values()])
        seconds = sorted(point["seconds"] for point in group.values())[len(group) // 2]
        quality.setdefault(policy, []).append((seconds, auc.mean, auc.std))
        if policy == "none" or policy.startswith("random"):
            continue
        for series, difference in (
            (share, against_random(points, policy, budget)),
            (at_time, against_random_at_equal_time(points, policy, budget)),
        ):
            if difference is not None:
                series.setdefault(policy, []).append((budget, difference.mean, difference.std))
    quality = {policy: sorted(values) for policy, values in quality.items()}
    drawn = [("AUC against time", plots.frontier(quality, x="training time (s)", y="AUC", name=f"{name} time"))]
    for caption, series in (("AUC above random, same budget", share), ("AUC above random, same time", at_time)):
        if series:
            picture = plots.frontier(series, x="budget", y="difference of AUC", name=f"{name} {caption}", zero=True)
            drawn.append((caption, picture))
    return [figure(caption, picture) for caption, picture in drawn]


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
