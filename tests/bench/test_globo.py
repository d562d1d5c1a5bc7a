from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from slipstream.bench import BenchOptions, globo
from slipstream.errors import DataError

ROOT = Path(__file__).parents[2]


def test_the_example_and_the_benchmark_train_alike():
    example = yaml.safe_load((ROOT / "examples/globo/train.yaml").read_text(encoding="utf-8"))
    assert example == globo.SETTINGS


def test_a_small_log_makes_a_record(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    clicks = 4000
    context = ("environment", "deviceGroup", "os", "country", "region", "referrer_type")
    frame = pl.DataFrame(
        {
            "user_id": rng.integers(0, 100, clicks).astype(np.uint32),
            "click_article_id": rng.zipf(1.5, clicks).clip(max=200).astype(np.uint32),
            "click_timestamp": (1_506_826_800 + np.arange(clicks)).astype(np.uint32),
            **{f"click_{name}": rng.integers(1, 4, clicks).astype(np.uint8) for name in context},
        }
    )
    frame.write_parquet(tmp_path / "globo_clicks.parquet")
    monkeypatch.setitem(globo.SETTINGS, "model", {"name": "dlrm", "embedding_dim": 4, "top": [4]})
    options = BenchOptions(quick=True, data=tmp_path / "globo_clicks.parquet", threads=1)
    monkeypatch.setattr(globo, "QUICK", (6000, 2000, 3000))
    record = globo.run(options)
    samples = int(record.dataset.split(", ")[1].split()[0].replace(",", ""))
    assert 6000 <= samples <= 3 * 3000, "quick prepares the first clicks only"
    assert record.name == "globo_prequential"
    assert set(record.ratios) == {"torch"}
    assert 0 < record.quality["AUC"] < 1
    assert record.quality["AUC on the start"] == pytest.approx(record.quality["AUC of torch on the start"], abs=0.02)


def test_missing_data_is_named(tmp_path):
    with pytest.raises(DataError, match="no such data"):
        globo.run(BenchOptions(data=tmp_path / "nothing.parquet"))
