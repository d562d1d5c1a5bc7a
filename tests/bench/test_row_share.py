from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from slipstream.bench import BenchOptions, row_share, run


def test_each_policy_stands_beside_full_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    users = np.repeat(np.arange(60), 40)
    frame = pl.DataFrame({"user": users, "item": (users % 3) * 40 + draw.integers(0, 40, users.size)})
    frame.unique(maintain_order=True).write_parquet(tmp_path / "ml1m_pairs.parquet")
    setting = row_share.Setting("ml1m", 5000, {"epochs": 2, "batch_size": 64})
    monkeypatch.setattr(row_share, "SETTINGS", {"MF": setting})
    monkeypatch.setattr(row_share, "POLICIES", ("saturation", "psse tail"))
    record = run("row_share", BenchOptions(quick=True, data=tmp_path, threads=1))
    assert [row["policy"] for row in record.rows] == ["none", "saturation 0.5", "psse tail 0.5"]
    assert set(record.ratios) == {"MF: saturation 0.5", "MF: psse tail 0.5"}
    assert 0.0 < record.quality["row update's share of a step, MF"] < 1.0
    for row in record.rows:
        assert row["at most"] >= 1.0 and row["full ÷ this"] > 0.0 and 0.0 <= row["skipped"] <= 1.0
    assert (record.rows[0]["at most"], record.rows[0]["to full"]) == (1.0, 0.0)
