"""Continuing against retraining: what is measured, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from slipstream.bench import BenchOptions, ContinueOptions, continuing, run
from slipstream.cli.app import app
from slipstream.data.prepare import prepare
from slipstream.data.store import Store
from slipstream.errors import ConfigError, DataError
from slipstream.report.continuing import continue_page, differences, summary, times
from slipstream.report.record import Record

COLUMNS = ("environment", "deviceGroup", "os", "country", "region", "referrer_type")


def write_log(folder: Path, clicks: int = 3000, hours: float = 3.0) -> Path:
    """Clicks at even times, articles changing over time."""
    draw = np.random.default_rng(0)
    when = np.linspace(0, hours * 3600 - 1, clicks)
    pl.DataFrame(
        {
            "user_id": draw.integers(0, 200, clicks),
            "click_article_id": draw.integers(0, 40, clicks) + when.astype(int) // 1800 * 20,
            "click_timestamp": 1_506_826_800 + when.astype(int),
            **{f"click_{name}": draw.integers(1, 4, clicks) for name in COLUMNS},
        }
    ).cast({pl.Int64: pl.UInt32}).write_parquet(folder / "globo_clicks.parquet")
    return folder


def test_options_out_of_range_are_refused(tmp_path: Path) -> None:
    for wrong, said in (
        ({"slices": 2}, "slices"),
        ({"hours": 0.0}, "hours"),
        ({"users": 1.5}, "users"),
        ({"seeds": 0}, "seeds"),
        ({"policies": ("guard",)}, "none, random, psse, importance"),
    ):
        with pytest.raises(ConfigError, match=said):
            ContinueOptions(**wrong)
    with pytest.raises(DataError, match="no such data"):
        run("continue", BenchOptions(quick=True, continuing=ContinueOptions(folder=Path("nowhere"))))
    write_log(tmp_path, clicks=1500)
    few = ContinueOptions(slices=3, hours=1.0, users=1.0, seeds=1, folder=tmp_path)
    with pytest.raises(DataError, match="slice 1 holds"):
        run("continue", BenchOptions(continuing=few))


def test_joined_slices_are_the_slices_one_after_the_other(tmp_path: Path) -> None:
    parts: list[Store] = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        log = write_log(tmp_path / str(number), clicks=300, hours=1.0 + number)
        parts.append(
            prepare(log / "globo_clicks.parquet", tmp_path / f"part{number}", extend=parts[-1].path if parts else None)
        )
    whole = continuing._joined(parts, tmp_path / "whole")
    assert whole.num_samples == sum(part.num_samples for part in parts)
    assert whole.features == parts[1].features
    first = parts[0].num_samples
    assert whole.ids[:first].equal(parts[0].ids) and whole.ids[first:].equal(parts[1].ids)
    assert whole.labels[first:].equal(parts[1].labels)
    assert Store.open(whole.path, verify=True).fingerprint == whole.fingerprint


def point(policy: str, way: str, seed: int, number: int, auc: float, seconds: float) -> dict[str, object]:
    given = {"policy": policy, "way": way, "seed": seed, "slice": number, "auc": auc, "seconds": seconds}
    return {**given, "log_loss": 0.5, "calibration": 1.0, "samples": 100}


def test_figures_are_taken_seed_by_seed() -> None:
    points = [
        point(policy, way, seed, number, auc + 0.01 * seed + 0.02 * number - cost, seconds)
        for policy, cost in (("none", 0.0), ("random", 0.03))
        for seed in (0, 1)
        for number in (2, 3)
        for way, auc, seconds in (("continued", 0.7, 1.0), ("retrained", 0.71, 3.0), ("stale", 0.6, 0.0))
    ]
    assert times(points) == {"none": 3.0, "random": 3.0}
    found = {name: round(gap.mean, 6) for name, gap in differences(points).items()}
    assert found == {
        "none, continued less retrained": -0.01,
        "none, stale less retrained": -0.11,
        "random, continued less retrained": -0.01,
        "random continued less full retrained": -0.04,
        "random, stale less retrained": -0.11,
    }
    assert [row["to full retrained"] for row in summary(points)][:2] == ["-0.0100 ± 0.0000", "+0.0000 ± 0.0000"]
    text = continue_page(Record(name="continue", dataset="a", points=points))
    assert "none: retraining takes 3.00 times as long" in text and text.count("<svg") == 4
    with pytest.raises(DataError, match="no study of updates"):
        continue_page(Record(name="step"))


def test_the_command_measures(tmp_path: Path) -> None:
    write_log(tmp_path, clicks=6000)
    record, page = tmp_path / "record.json", tmp_path / "page.html"
    arguments = ["--slices", "3", "--hours", "1", "--users", "1", "--seeds", "1", "--policies", "importance"]
    arguments += ["--threads", "1", "--folder", str(tmp_path), "--json", str(record), "--html", str(page)]
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", "continue", *arguments])
    assert done.exit_code == 0, done.output
    kept = Record.load(record)
    assert [(p["policy"], p["way"], p["slice"]) for p in kept.points] == [
        (policy, way, 2) for policy in ("none", "importance") for way in ("continued", "retrained", "stale")
    ]
    rows = kept.conditions["rows of all tables by slice"]
    assert rows[0] < rows[1] < rows[2], "vocabularies grow"
    samples = kept.conditions["samples of the slices"]
    assert [p["samples"] for p in kept.points[:3]] == [samples[1] - 1000, samples[0] + samples[1] - 1000, 0]
    assert set(kept.ratios) == {f"retraining, {policy}" for policy in ("none", "importance")}
    assert "AUC on the next slice" in page.read_text(encoding="utf-8")
