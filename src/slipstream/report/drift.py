"""What a study of drift says, and its page: each variant against full training, over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from slipstream.errors import DataError
from slipstream.report import plots
from slipstream.report.frontier import Spread
from slipstream.report.page import figure, measured, page, table
from slipstream.report.record import Record

Point = Mapping[str, Any]
CONTRASTS: dict[tuple[str, str], str] = {
    ("psse, exact counts", "psse, decided once"): "psse decided again above decided once",
    ("psse, half-life 1/4", "psse, exact counts"): "psse with a long half-life above exact counts",
    ("psse, half-life 1/20", "psse, exact counts"): "psse with a short half-life above exact counts",
    ("saturation, thaw", "saturation, no thaw"): "saturation with thaw above without",
    ("subsampling", "subsampling, decided once"): "subsampling decided again above decided once",
    ("slipstream, periodic", "slipstream, one shot"): "slipstream periodic above one shot",
}
"""Pairs of variants, the one that follows the drift first, and what their difference in AUC is called."""
CURVES = {
    "gates_shut": "rows whose gate is shut, share",
    "updates_skipped": "row updates skipped, share",
    "inputs_skipped": "inputs skipped, share",
}


def by_place(points: Sequence[Point]) -> dict[str, dict[str, dict[int, Point]]]:
    """Points by data set, variant and seed, in their order."""
    places: dict[str, dict[str, dict[int, Point]]] = {}
    for point in points:
        places.setdefault(point["data"], {}).setdefault(point["variant"], {})[point["seed"]] = point
    return places


def difference(ours: Mapping[int, Point], theirs: Mapping[int, Point], key: str = "auc") -> Spread | None:
    """A figure less another variant's, seed by seed; None where they share no seed or one has none."""
    both = [(ours[seed].get(key), theirs[seed].get(key)) for seed in ours if seed in theirs]
    values = [float(a - b) for a, b in both if a is not None and b is not None]
    return Spread.of(values) if values else None


def contrasts(points: Sequence[Point]) -> Iterator[tuple[str, tuple[str, str], Spread]]:
    """Each of ``CONTRASTS`` on each data set: the data, the pair, and the difference in AUC."""
    for data, found in by_place(points).items():
        for pair in CONTRASTS:
            spread = difference(found.get(pair[0], {}), found.get(pair[1], {}))
            if spread is not None:
                yield data, pair, spread


def summary(points: Sequence[Point]) -> list[dict[str, Any]]:
    """One row for each data set and variant, means over the seeds."""
    rows: list[dict[str, Any]] = []
    for data, found in by_place(points).items():
        full = found.get("none", {})
        for variant, group in found.items():
            members = list(group.values())
            gap = None if variant == "none" else difference(group, full)
            new = None if variant == "none" else difference(group, full, "auc_new")
            rows.append(
                {
                    "data": data,
                    "variant": variant,
                    "seeds": len(members),
                    "AUC": round(float(np.mean([point["auc"] for point in members])), 5),
                    "to full": _words(gap),
                    "new items to full": _words(new),
                    "inputs": round(float(np.mean([point["share_of_inputs_trained"] for point in members])), 4),
                    "skipped": round(float(np.mean([point["share_of_row_updates_skipped"] for point in members])), 4),
                    "shut at the end": round(float(np.mean([point["gates_shut"][-1][1] for point in members])), 4),
                    "seconds": round(float(np.median([point["seconds"] for point in members])), 2),
                }
            )
    return rows


def _words(spread: Spread | None) -> str:
    return "–" if spread is None else str(spread)


def drift_page(record: Record, *, title: str = "Slipstream: what drift does to decisions") -> str:
    """The page of a study.

    Raises:
        DataError: The record is of something else.
    """
    if not record.points or "gates_shut" not in record.points[0]:
        raise DataError(f"record {record.name} is no study of drift", remedy="name a record of bench drift")
    parts = [
        f"<h1>{escape(title)}</h1>",
        '<p class="soft">Prequential: each chunk is predicted, then trained on. Lines are means over the seeds. '
        "Columns: to full: AUC less full training's; new items: of items in no sample before the scored ones; skipped: "
        "share of the row updates; shut at the end: share of the rows looked up so far whose gate is not open.</p>",
        measured(record),
    ]
    rows = summary(record.points)
    titles = [name for name in rows[0] if name != "data"]
    for number, (data, found) in enumerate(by_place(record.points).items()):
        spreads = [(pair, spread) for name, pair, spread in contrasts(record.points) if name == data]
        sentences = (f"{CONTRASTS[pair]}: AUC {_words(spread)}" for pair, spread in spreads)
        drawn = [
            figure(caption, plots.lines(series, x="samples passed", y=caption, name=f"{number} {caption}"))
            for caption, series in _series(found)
        ]
        parts += [
            f"<h2>{escape(data)}</h2>",
            f"<ul>{''.join(f'<li>{escape(sentence)}.</li>' for sentence in sentences)}</ul>",
            f'<div class="plots">{"".join(drawn)}</div>',
            table(
                titles,
                [[str(row[name]) for name in titles] for row in rows if row["data"] == data],
                [name != "variant" for name in titles],
            ),
        ]
    return page(title, parts)


def _series(
    found: Mapping[str, Mapping[int, Point]],
) -> Iterator[tuple[str, dict[str, tuple[list[float], list[float]]]]]:
    """The figures of a data set: AUC less full training's over time, then ``CURVES``."""
    full = found.get("none", {})
    gaps: dict[str, tuple[list[float], list[float]]] = {}
    for variant, group in found.items():
        both = [(group[seed]["auc_over_time"], full[seed]["auc_over_time"]) for seed in group if seed in full]
        if variant != "none" and both:
            at = [samples for samples, _ in both[0][0]]
            lines = [[a - b for (_, a), (_, b) in zip(ours, theirs, strict=True)] for ours, theirs in both]
            gaps[variant] = (at, np.mean(lines, axis=0).tolist())
    if gaps:
        yield "AUC less full training's", gaps
    for key, caption in CURVES.items():
        curves = {
            variant: (
                [samples for samples, _ in next(iter(group.values()))[key]],
                np.mean([[share for _, share in point[key]] for point in group.values()], axis=0).tolist(),
            )
            for variant, group in found.items()
        }
        shown = {variant: curve for variant, curve in curves.items() if any(curve[1])}
        if shown:
            yield caption, shown
