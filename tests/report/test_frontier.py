from __future__ import annotations

from typing import Any

import pytest

from slipstream.errors import DataError
from slipstream.report.frontier import (
    AUC,
    against_random,
    against_random_at_equal_time,
    by_bucket,
    closest,
    grouped,
    measure,
    summary,
    time_saved,
)
from slipstream.report.frontier_page import findings, frontier_page
from slipstream.report.record import Record


def point(policy: str, budget: float, seed: int, auc: float, seconds: float) -> dict[str, Any]:
    return {
        "policy": policy,
        "budget": budget,
        "seed": seed,
        "auc": auc,
        "log_loss": 0.5,
        "calibration": 1.0,
        "seconds": seconds,
        "share_of_inputs_trained": budget,
        "share_of_row_updates_skipped": 0.0,
        "by_popularity": {},
    }


POINTS = [
    point("none", 1.0, 0, 0.800, 10.0),
    point("none", 1.0, 1, 0.802, 12.0),
    point("random", 0.25, 0, 0.760, 3.0),
    point("random", 0.25, 1, 0.762, 3.0),
    point("random", 0.5, 0, 0.780, 6.0),
    point("random", 0.5, 1, 0.784, 6.0),
    point("psse", 0.5, 0, 0.800, 8.0),
    point("psse", 0.5, 1, 0.801, 8.0),
    point("psse", 0.25, 0, 0.790, 2.0),
    point("psse", 0.25, 1, 0.790, 2.0),
]


def test_points_are_grouped_in_the_order_of_policies_and_budgets() -> None:
    assert list(grouped(POINTS)) == [
        ("none", 1.0),
        ("random", 0.25),
        ("random", 0.5),
        ("psse", 0.25),
        ("psse", 0.5),
    ]


def test_differences_are_taken_seed_by_seed() -> None:
    spread = against_random(POINTS, "psse", 0.5)
    assert spread is not None
    assert spread.mean == pytest.approx(0.0185)
    assert (spread.low, spread.high) == (pytest.approx(0.017), pytest.approx(0.020))
    assert spread.std == pytest.approx(0.003 / 2**0.5)
    assert against_random(POINTS, "psse", 0.7) is None
    assert against_random([*POINTS, point("psse", 0.25, 2, 0.1, 1.0)], "psse", 0.25).mean == pytest.approx(0.029)  # type: ignore[union-attr]


def test_at_equal_time_random_is_interpolated_up_to_full_training_and_not_beyond() -> None:
    # In 8 s random reaches 0.790 with seed 0 (6 s: 0.780, 10 s: 0.800) and with seed 1 (6 s: 0.784, 12 s: 0.802).
    spread = against_random_at_equal_time(POINTS, "psse", 0.5)
    assert spread is not None
    assert (spread.low, spread.high) == (pytest.approx(0.010), pytest.approx(0.011))
    assert against_random_at_equal_time(POINTS, "psse", 0.25) is None, "faster than every random point"
    faster = [point("psse", 0.5, 2, 0.9, 2.0), point("random", 0.5, 2, 0.8, 6.0)]
    assert against_random_at_equal_time([*POINTS, *faster], "psse", 0.5) is None, "in one seed"
    slower = [*POINTS, point("order", 1.0, 0, 0.79, 20.0)]
    assert against_random_at_equal_time(slower, "order", 1.0).mean == pytest.approx(-0.01), "full training is faster"  # type: ignore[union-attr]


def test_time_saved_is_of_the_fastest_point_within_the_tolerance() -> None:
    (saved,) = time_saved(POINTS)
    assert (saved.policy, saved.budget) == ("psse", 0.5)
    assert saved.ratio == pytest.approx((10 / 8 + 12 / 8) / 2)
    assert saved.difference == pytest.approx(-0.0005)
    assert {entry.policy: entry.budget for entry in time_saved(POINTS, 0.02)} == {"random": 0.5, "psse": 0.25}
    assert closest(POINTS) == {"random": (0.5, pytest.approx(-0.019)), "psse": (0.5, pytest.approx(-0.0005))}
    higher = [point("psse", 0.7, seed, 0.9, 9.0) for seed in (0, 1)]
    assert closest([*POINTS, *higher])["psse"] == (0.5, pytest.approx(-0.0005)), "not the highest"


def ranked(policy: str, budget: float, seed: int, ndcg: float, seconds: float) -> dict[str, Any]:
    return {
        **point(policy, budget, seed, 0.9, seconds),
        "auc": None,
        "ndcg": ndcg,
        "recall": ndcg + 0.01,
        "recall_by_popularity": {"head": 0.2, "torso": 0.1, "tail": None, "new": None},
        "coverage": 0.3,
        "gini": 0.9,
    }


def test_points_with_ranked_lists_are_judged_by_ndcg() -> None:
    points = [
        ranked("none", 1.0, 0, 0.120, 10.0),
        ranked("random", 0.5, 0, 0.100, 5.0),
        ranked("psse", 0.5, 0, 0.1195, 5.0),
    ]
    assert against_random(points, "psse", 0.5).mean == pytest.approx(0.0195)  # type: ignore[union-attr]
    (saved,) = time_saved(points)
    assert (saved.policy, saved.ratio) == ("psse", 2.0) and saved.difference == pytest.approx(-0.0005)
    row = summary(points)[-1]
    assert (row["NDCG"], row["recall"], row["tail"], row["gini"]) == (0.1195, 0.1295, "–", 0.9) and "AUC" not in row
    record = Record(name="frontier_pairs", dataset="pairs", points=points)
    assert any("NDCG -0.0005" in sentence for sentence in findings(record))
    assert "psse against random at budget 0.5: NDCG +0.0195, of one seed." in findings(record)
    assert (row["above random"], row["NDCG std"]) == ("+0.0195, one seed", "–")
    page = frontier_page([record])
    assert "NDCG against time" in page and "recall by popularity of the item" in page
    assert measure([*points, point("none", 1.0, 1, 0.8, 1.0)]) is AUC, "one point without lists"


def test_buckets_are_of_auc_or_of_recall() -> None:
    scored = {**POINTS[0], "by_popularity": {"head": {"auc": 0.8}}, "new_items": {"new": {"auc": None}}}
    assert by_bucket([scored, {**scored, "by_popularity": {"head": {"auc": 0.6}}}]) == {"head": 0.7, "new": None}
    assert by_bucket([ranked("none", 1.0, 0, 0.1, 1.0)]) == {"head": 0.2, "torso": 0.1, "tail": None, "new": None}


def test_the_summary_has_a_row_for_each_policy_and_budget() -> None:
    rows = summary(POINTS)
    assert [(row["policy"], row["budget"], row["seeds"]) for row in rows][:2] == [("none", 1.0, 2), ("random", 0.25, 2)]
    assert rows[-1]["above random"] == "+0.0185 ± 0.0021"
    assert rows[1]["above random"] == "–"


def test_the_page_shows_every_record_and_escapes_what_they_say(tmp_path, open_in_browser) -> None:
    record = Record(
        name="frontier_a", dataset="<b>data</b>", conditions={"left out": {"order 1": "needs holdout"}}, points=POINTS
    )
    other = record.model_copy(update={"name": "frontier_b", "points": POINTS[:2]})
    text = frontier_page([record, other])
    assert "<b>data" not in text and "&lt;b&gt;data" in text
    assert text.count("<h2 id=") == 2 and text.count('href="#frontier-') == 2
    assert any("order 1" in sentence for sentence in findings(record))
    assert any(sentence.startswith("random has no point within 0.001") for sentence in findings(record))
    page = tmp_path / "page.html"
    page.write_text(text, encoding="utf-8")
    _, console = open_in_browser(page)
    assert console == []
    with pytest.raises(DataError, match="no points"):
        frontier_page([Record(name="step")])


def test_a_page_of_points_of_which_some_lack_figures() -> None:
    """Lists were measured for one policy alone, and buckets of another have other names."""
    points = [*POINTS[:2], {**POINTS[2], "coverage": 0.5, "gini": 0.5, "by_popularity": {"tail": {"auc": 0.5}}}]
    page = frontier_page([Record(name="frontier_a", dataset="a", points=points)])
    assert "tail" in page and "gini</th>" not in page
