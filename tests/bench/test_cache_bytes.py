from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.bench import BenchOptions, cache_bytes, run
from slipstream.data.synthetic import SyntheticConfig, generate


def test_gated_rows_that_the_card_lacks_come_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = SyntheticConfig.preset("default", num_samples=20_000, scale=0.0005)
    generate(tmp_path / "synthetic-default-0.25-20000", small)
    monkeypatch.setattr(cache_bytes, "PLACES", (("psse", 0.5), ("random rows", 0.5)))
    monkeypatch.setattr(cache_bytes, "CACHED", 0.5)
    monkeypatch.setattr(cache_bytes, "SAMPLES", {"synthetic-wide": 20_000})
    record = run("cache_bytes", BenchOptions(quick=True, threads=1, cache=tmp_path))
    full, psse, _ = record.rows
    assert set(record.ratios) == {"synthetic-wide: psse 0.5", "synthetic-wide: random rows 0.5"}
    assert len(record.quality) == 2
    assert full["rows that came to be read alone"] == 0 and full["distinct rows updated"] == full["distinct rows read"]
    assert 0 < psse["rows that came to be read alone"] < psse["rows that came"] == full["rows that came"]
    assert psse["MB"] < full["MB"] and record.ratios["synthetic-wide: psse 0.5"] > 1.0
