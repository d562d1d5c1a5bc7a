from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from slipstream.bench import (
    BenchOptions,
    ScaleOptions,
    run,
    scale,
    scale_beyond,
    scale_data,
    scale_overhead,
    scale_tables,
    workload,
)
from slipstream.cli.app import app
from slipstream.data.synthetic import SyntheticConfig
from slipstream.errors import ConfigError
from slipstream.report.record import Record


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    cardinalities = workload.cardinalities
    monkeypatch.setattr(workload, "cardinalities", lambda total=0: cardinalities(min(total or 100_000, 150_000)))
    monkeypatch.setattr(workload, "BATCH_SIZE", 64)
    for module, sizes in ((scale_tables, (100_000, 150_000)), (scale_data, (2_000, 20_000))):
        monkeypatch.setattr(module, "SIZES", sizes)
    monkeypatch.setattr(scale_data, "LONG_BATCH", 128)
    monkeypatch.setattr(scale_data, "LONG_ROWS", 8_000)
    monkeypatch.setattr(scale_tables, "FEATURES", (2, 4))
    monkeypatch.setattr(scale_beyond, "QUICK_BYTES", 4 << 20)
    monkeypatch.setattr(scale_tables, "FEATURE_ROWS", 1000)
    tables = dict.fromkeys(("cardinalities",), (50, 200))
    monkeypatch.setattr(scale_data, "_config", lambda count, rate, seed: SyntheticConfig(
        num_samples=count, base_rate=rate, seed=seed, **tables
    ))  # fmt: skip


def _options(*parts: str, **changes: object) -> BenchOptions:
    return BenchOptions(quick=True, scale=ScaleOptions(parts=parts or scale.PARTS, **changes))  # type: ignore[arg-type]


@pytest.mark.usefixtures("small")
def test_every_part_leaves_its_rows_and_a_slope(tmp_path: Path) -> None:
    record = run("scale", _options())
    assert {row["part"] for row in record.rows} == set(scale.PARTS)
    assert all({"series", "p20", "p50", "p80"} <= row.keys() for row in record.rows)
    series = {row["series"] for row in record.rows if row["part"] == "rows"}
    assert {"DLRM step", "lookup and row update, file cold", "lookup and row update, file warm"} <= series
    assert "DLRM step/1e+05_to_1.5e+05_rows" in record.ratios
    assert "samples: slope, training" in record.quality
    for policy in scale_overhead.POLICIES:
        assert record.quality[f"overhead: policy's share of a step, {policy}"] >= 0.0
    assert record.quality["positives: share trained on, random half, 0.25"] == pytest.approx(0.5, abs=0.1)
    assert Record.load(record.save(tmp_path / "scale.json")) == record


@pytest.mark.usefixtures("small")
def test_a_part_measured_again_leaves_the_others(tmp_path: Path) -> None:
    file = tmp_path / "scale.json"
    first = run("scale", _options("features", "samples"))
    first.save(file)
    second = run("scale", _options("samples", keep=file))
    features = [row for row in first.rows if row["part"] == "features"]
    assert [row for row in second.rows if row["part"] == "features"] == features
    assert [row["part"] for row in second.rows].count("samples") == [row["part"] for row in first.rows].count("samples")
    assert second.conditions["parts"].keys() == {"features", "samples"}
    assert first.ratios.keys() == second.ratios.keys()


def test_parts_must_be_known() -> None:
    with pytest.raises(ConfigError, match="parts must be among rows"):
        ScaleOptions(parts=("rows", "columns"))
    with pytest.raises(ConfigError, match="got none"):
        ScaleOptions(parts=())


def test_parts_on_the_command_line_must_be_known() -> None:
    done = CliRunner().invoke(app, ["bench", "scale", "--parts", "columns"])
    assert isinstance(done.exception, ConfigError) and "parts must be among" in str(done.exception)


def _row(size: float, cost: float, part: str = "rows", series: str = "DLRM step") -> dict[str, object]:
    return {"part": part, "series": series, "size": size, "p50": cost}


def test_a_power_law_has_its_exponent_as_slope() -> None:
    rows = [_row(10.0**k, 3.0 * 10 ** (0.5 * k)) for k in (7, 5, 6, 8)]
    found = scale.slopes(rows)
    assert found["rows: slope, DLRM step"] == pytest.approx(0.5)
    growth = scale.growth(rows)
    assert growth == {"DLRM step/1e+05_to_1e+08_rows": 31.623, "DLRM step/1e+05_to_1e+07_rows": 10.0}


def test_the_steepest_piece_says_where_it_bends() -> None:
    found = scale.slopes([_row(1e5, 1.0), _row(1e6, 1.0), _row(1e7, 2.0), _row(1e8, 2.2)])
    assert found["rows: steepest slope, DLRM step, 1e+06 to 1e+07"] == pytest.approx(0.301, abs=1e-3)


def test_rows_without_a_size_or_a_neighbour_have_no_slope() -> None:
    rows = [{"part": "overhead", "series": "step, none", "p50": 1.0}, _row(1e6, 1.0, "samples", "training")]
    assert scale.slopes(rows) == {} and scale.growth(rows) == {}


def test_a_filled_file_has_no_holes_and_may_be_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "table"
    size = (16 << 20) + 400
    scale_tables.fill_file(file, size)
    assert file.stat().st_size == size
    if hasattr(os.stat_result, "st_blocks"):
        assert file.stat().st_blocks * 512 >= size
    scale_tables.forget(file)
    assert file.read_bytes()[-4:] != b"\0\0\0\0"


@pytest.mark.usefixtures("small")
def test_tables_that_fit_make_no_claim_to_be_beyond_memory(tmp_path: Path) -> None:
    options = BenchOptions(quick=True, cache=tmp_path, scale=ScaleOptions(parts=("beyond",)))
    record = run("scale", options)
    assert all(row["fits in memory"] for row in record.rows)
    assert record.quality["beyond: bytes of the larger tables ÷ memory"] < 1.0
    gated = {row["series"]: row["accesses gated"] for row in record.rows}
    assert gated["all rows updated"] == 0.0
    assert gated["PSSE 0.9"] == pytest.approx(0.1, abs=0.05)
    assert gated["PSSE 0.5"] == pytest.approx(0.5, abs=0.1)
    assert any(key.startswith("all rows updated/") and key.endswith("_beyond") for key in record.ratios)
    assert list(tmp_path.iterdir()) == []


def test_tables_for_which_the_disk_has_no_room_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_beyond, "QUICK_BYTES", 1 << 60)
    with pytest.raises(ConfigError, match=r"tables beyond memory take .* GiB free"):
        run("scale", BenchOptions(quick=True, cache=tmp_path, scale=ScaleOptions(parts=("beyond",))))
    assert list(tmp_path.iterdir()) == []


def test_popular_rows_of_a_large_table_are_drawn_as_often_as_the_law_says() -> None:
    rows = 5000
    popularity = scale_beyond.Popularity(rows, 1.05)
    assert len(set(popularity.row(np.arange(rows)).tolist())) == rows
    ids = popularity.draw(50_000, np.random.default_rng(0)).numpy()
    edges = np.arange(1, rows + 2, dtype=np.float64) ** -0.05
    law = (edges[0] - edges[1]) / (edges[0] - edges[-1])
    assert (ids == popularity.row(0)).mean() == pytest.approx(law, rel=0.05)
    assert ids.min() >= 0 and ids.max() < rows
    open_rows = np.flatnonzero(popularity.gate(0.7).numpy())
    assert np.isin(ids, open_rows).mean() == pytest.approx(0.7, abs=0.02)
