from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from slipstream.bench import BenchOptions, DriftOptions, drift, run
from slipstream.cli.app import app
from slipstream.errors import ConfigError, DataError
from slipstream.policies import build_policy
from slipstream.report.drift import contrasts, difference, drift_page, summary
from slipstream.report.record import Record


def test_options_out_of_range_are_refused() -> None:
    for wrong, said in (
        ({"sets": ("criteo",)}, "globo, synthetic"),
        ({"speeds": (-1.0,)}, "speeds"),
        ({"budget": 0.95}, "budget"),
        ({"seeds": 0}, "seeds"),
        ({"samples": 10}, "samples"),
    ):
        with pytest.raises(ConfigError, match=said):
            DriftOptions(**wrong)
    with pytest.raises(DataError, match="no such data"):
        run("drift", BenchOptions(quick=True, drift=DriftOptions(folder=Path("nowhere"))))


@pytest.mark.parametrize("steps", [40, 300, 5000])
def test_every_variant_is_a_policy_and_static_ones_decide_once(steps: int) -> None:
    found = drift.variants(steps, 0.7)
    for policy in found.values():
        build_policy(policy)
    for name in ("psse, decided once", "subsampling, decided once"):
        assert found[name]["every"] > steps > found[name]["warmup_steps"]
    assert found["slipstream, one shot"]["decisions"] == 1


def point(data: str, variant: str, seed: int, auc: float) -> dict[str, object]:
    curve = [[10, 0.5], [20, auc]]
    return {
        "data": data,
        "variant": variant,
        "seed": seed,
        "auc": auc,
        "auc_new": None if variant == "none" else auc - 0.1,
        "seconds": 1.0,
        "share_of_inputs_trained": 1.0,
        "share_of_row_updates_skipped": 0.3,
        "auc_over_time": curve,
        "gates_shut": [[10, 0.0], [20, 0.4]],
        "updates_skipped": [[10, 0.0], [20, 0.3]],
        "inputs_skipped": [[10, 0.0], [20, 0.0]],
    }


def test_contrasts_are_taken_seed_by_seed() -> None:
    points = [
        point("a", "none", 0, 0.8),
        point("a", "saturation, thaw", 0, 0.79),
        point("a", "saturation, thaw", 1, 0.70),
        point("a", "saturation, no thaw", 0, 0.78),
        point("b", "psse, exact counts", 0, 0.7),
    ]
    ((data, pair, spread),) = contrasts(points)
    assert (data, pair[0], round(spread.mean, 6)) == ("a", "saturation, thaw", 0.01)
    assert difference({0: points[0]}, {0: points[1]}, "auc_new") is None
    rows = summary(points)
    assert [row["variant"] for row in rows][:2] == ["none", "saturation, thaw"]
    assert rows[1]["to full"] == "-0.0100, one seed" and rows[1]["shut at the end"] == 0.4
    text = drift_page(Record(name="drift", dataset="a", points=points))
    assert "saturation with thaw above without" in text and "<svg" in text
    with pytest.raises(DataError, match="no study of drift"):
        drift_page(Record(name="step"))


def test_the_command_measures_synthetic_drift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = drift.variants(19, 0.7)
    monkeypatch.setattr(
        drift, "variants", lambda steps, budget: {name: two[name] for name in ("none", "saturation, thaw")}
    )
    monkeypatch.setattr(drift, "QUICK_SAMPLES", 20_000)
    record, page = tmp_path / "record.json", tmp_path / "page.html"
    arguments = ["--data", "synthetic", "--speeds", "50", "--budget", "0.5", "--quick", "--threads", "1"]
    done = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["bench", "drift", *arguments, "--json", str(record), "--html", str(page)]
    )
    assert done.exit_code == 0, done.output
    kept = Record.load(record)
    assert [(p["data"], p["variant"]) for p in kept.points] == [
        ("synthetic, speed 50", "none"),
        ("synthetic, speed 50", "saturation, thaw"),
    ]
    for name in ("gates_shut", "updates_skipped", "inputs_skipped", "auc_over_time"):
        curve = kept.points[1][name]
        assert curve[-1][0] == 20_000 and all(0.0 <= share <= 1.0 for _, share in curve)
    assert kept.points[0]["gates_shut"][-1][1] == 0.0
    assert "samples passed" in page.read_text(encoding="utf-8")
