"""The benchmarks of the guard and of the published schemes: what is measured, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from slipstream.bench import BenchOptions, GuardOptions, fidelity, run
from slipstream.bench.guard import Promise, summary
from slipstream.cli.app import app
from slipstream.errors import ConfigError
from slipstream.report.record import Record


def test_the_guards_promise_is_measured_against_full_training(tmp_path: Path) -> None:
    record = tmp_path / "guard.json"
    arguments = ["--data", "movietweetings", "--samples", "12000", "--seeds", "2", "--tolerances", "0.3"]
    arguments += ["--auc-tolerances", "0.2", "--threads", "1", "--cache", str(tmp_path), "--json", str(record)]
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", "guard", *arguments])
    assert done.exit_code == 0, done.output
    kept = Record.load(record)
    assert [(row["of"], row["tolerance"], row["runs"]) for row in kept.rows] == [("log-loss", 0.3, 2), ("auc", 0.2, 2)]
    assert kept.quality["runs"] == 4 and [point["seed"] for point in kept.points] == [0, 0, 1, 1]
    for point in kept.points:
        assert point["held"] == (point["cost"] <= point["tolerance"])
        if point["share_of_inputs_trained"] == 1.0:
            assert point["cost"] == pytest.approx(0.0, abs=1e-6)


def test_the_summary_by_hand() -> None:
    common = {"data": "a", "of": "auc", "tolerance": 0.01, "seconds": 2.0, "seconds_full": 3.0}
    points = [
        {**common, "cost": 0.005, "held": True, "share_of_inputs_trained": 0.5},
        {**common, "cost": 0.015, "held": False, "share_of_inputs_trained": 1.0},
    ]
    (row,) = summary(points)
    assert (row["runs"], row["held"], row["skipped anything"]) == (2, 1, 1)
    assert (row["cost"], row["cost, worst"], row["inputs trained"]) == (0.01, 0.015, 0.75)
    assert row["time, full ÷ guarded"] == 1.5
    assert Promise("auc", 0.01).settings() == {"tolerance": None, "auc_tolerance": 0.01}


def test_the_published_schemes_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fidelity, "QUICK_SAMPLES", 12_000)
    monkeypatch.setattr(fidelity, "HOT_ROWS", 1.0)  # fewer rows make no whole hot batch of so few samples
    record = run("fidelity", BenchOptions(quick=True, threads=1, cache=tmp_path))
    systems = [row["system"] for row in record.rows]
    assert systems[:3] == ["full, data order", "order alone, cold then hot", "FAE's scheduler"]
    assert any(name.startswith("published Slipstream") for name in systems)
    assert {"random, as many, data order", "random, as many, cold then hot"} <= set(systems)
    assert len(record.ratios) == len(systems) - 1 and len(record.quality) == len(systems)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerances": (), "auc_tolerances": ()}, "there must be a tolerance"),
        ({"tolerances": (1.0,)}, r"tolerances must be in \(0, 1\)"),
        ({"auc_tolerances": (0.5,)}, r"AUC tolerances must be in \(0, 0.5\)"),
        ({"data": ()}, "at least one data set"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"samples": 10}, "samples must be at least 1,000"),
        ({"policy": "psse"}, "policy must be random or importance"),
    ],
)
def test_options_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GuardOptions(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["guard", "--policy", "psse"], "policy must be random or importance"),
        (["guard", "--tolerances", "much"], r"tolerances must be numbers in \(0, 1\)"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert isinstance(result.exception, ConfigError)
    with pytest.raises(ConfigError, match=message):
        raise result.exception
