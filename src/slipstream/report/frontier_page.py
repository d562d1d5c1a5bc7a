"""The page of frontiers: quality against time, and against random skipping, one section for each data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from slipstream.errors import DataError
from slipstream.report import plots
from slipstream.report.frontier import (
    NDCG,
    TOLERANCE,
    Spread,
    against_random,
    against_random_at_equal_time,
    by_bucket,
    closest,
    grouped,
    measure,
    summary,
    time_saved,
)
from slipstream.report.page import figure, measured, page, table
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
        '<p class="soft">Seconds are those of the training with every overhead; AUC is of samples it never saw, NDCG '
        "and recall of lists of 20 among the full catalogue (data of pairs). Bars are standard deviations over the "
        "seeds; differences are taken seed by seed. Columns: inputs: share trained on; skipped: share of their row "
        "updates; head, torso, tail: AUC (recall) by the popularity of the item; new: of items in no sample before "
        "the scored ones; untrained: of items that could not be trained on when they were predicted; coverage, gini: "
        "how widely recommendations spread; above random: AUC (NDCG) over random inputs at the same budget; same time: "
        "over random inputs that take as long or full training, interpolated.</p>",
    ]
    if len(records) > 1:
        links = (f'<li><a href="#frontier-{number}">{escape(r.dataset)}</a></li>' for number, r in enumerate(records))
        parts.append(f"<ul>{''.join(links)}</ul>")
    for number, record in enumerate(records):
        if not record.points:
            raise DataError(f"record {record.name} holds no points", remedy="name records of bench frontier")
        parts += section(record, f"{number} {record.name}", f"frontier-{number}")
    return page(title, parts)


def section(record: Record, name: str, anchor: str) -> list[str]:
    """A frontier as part of a page, as HTML.

    Args:
        record: The frontier, with ``points``.
        name: Unique on the page; begins the names of its drawings.
        anchor: The section's id.
    """
    points = record.points
    rows = summary(points)
    titles = list(dict.fromkeys(title for row in rows for title in row))
    short = {key: value for key, value in record.conditions.items() if isinstance(value, int | float | str)}
    conditions = ", ".join(f"{key}: {value}" for key, value in short.items() if value is not False)
    return [
        f'<h2 id="{anchor}">{escape(record.dataset)}</h2>',
        f'<p class="soft">{escape(conditions)}.</p>',
        measured(record),
        f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in findings(record))}</ul>",
        f'<div class="plots">{"".join(_figures(points, name))}</div>',
        table(
            titles,
            [[_cell(row.get(title, "–")) for title in titles] for row in rows],
            [title != "policy" for title in titles],
        ),
    ]


def findings(record: Record) -> list[str]:
    """What the points say, in sentences: time saved at equal quality, who beats random, what was left out."""
    points = record.points
    title = measure(points).title
    saved = {entry.policy: entry for entry in time_saved(points)}
    sentences = [
        f"{entry.policy} at budget {entry.budget:g} takes 1/{entry.ratio:.2f} of full training's time, its {title} "
        f"{entry.difference:+.4f} from it."
        for entry in saved.values()
    ]
    sentences += [
        f"{policy} has no point within {TOLERANCE} {title} of full training; its closest, budget {budget:g}, is "
        f"{gap:+.4f}."
        for policy, (budget, gap) in closest(points).items()
        if policy not in saved
    ]
    for policy, budget in grouped(points):
        spread = None if policy in ("none", "random") else against_random(points, policy, budget)
        if spread is not None:
            beyond = "beyond" if abs(spread.mean) > spread.std else "within"
            spreads = "of one seed" if math.isnan(spread.std) else f"{beyond} the spread"
            sentences.append(f"{policy} against random at budget {budget:g}: {title} {spread.mean:+.4f}, {spreads}.")
    sentences += [f"Left out: {place}: {reason}" for place, reason in record.conditions.get("left out", {}).items()]
    return sentences


def _figures(points: Sequence[dict[str, Any]], name: str) -> list[str]:
    quality: Series = {}
    share: Series = {}
    at_time: Series = {}
    by = measure(points)
    for (policy, budget), group in grouped(points).items():
        reached = Spread.of([point[by.key] for point in group.values()])
        seconds = sorted(point["seconds"] for point in group.values())[len(group) // 2]
        quality.setdefault(policy, []).append((seconds, reached.mean, reached.bar))
        if policy == "none" or policy.startswith("random"):
            continue
        for series, difference in (
            (share, against_random(points, policy, budget)),
            (at_time, against_random_at_equal_time(points, policy, budget)),
        ):
            if difference is not None:
                series.setdefault(policy, []).append((budget, difference.mean, difference.bar))
    quality = {policy: sorted(values) for policy, values in quality.items()}
    picture = plots.frontier(quality, x="training time (s)", y=by.title, name=f"{name} time")
    drawn = [(f"{by.title} against time", picture)]
    for caption, series in ((f"{by.title} above random, same budget", share), ("… same time", at_time)):
        if series:
            label = f"difference of {by.title}"
            picture = plots.frontier(series, x="budget", y=label, name=f"{name} {caption}", zero=True)
            drawn.append((caption, picture))
    drawn += _by_popularity(points, name)
    return [figure(caption, picture) for caption, picture in drawn]


def _by_popularity(points: Sequence[dict[str, Any]], name: str) -> list[tuple[str, str]]:
    """Full training and each policy at the middle one of its budgets, by the popularity of the items."""
    places: dict[str, list[tuple[float, list[dict[str, Any]]]]] = {}
    for (policy, budget), group in grouped(points).items():
        places.setdefault(policy, []).append((budget, [dict(point) for point in group.values()]))
    middle = {policy: found[len(found) // 2] for policy, found in places.items()}
    found = {f"{policy} {budget:g}": by_bucket(members) for policy, (budget, members) in middle.items()}
    groups = list(dict.fromkeys(group for values in found.values() for group in values))
    if not groups:
        return []
    what = "recall" if measure(points) is NDCG else "AUC"
    series = {label: [values.get(group) for group in groups] for label, values in found.items()}
    drawn = plots.dots(groups, series, x="popularity of the item", y=what, name=f"{name} popularity")
    return [(f"{what} by popularity of the item", drawn)]


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
