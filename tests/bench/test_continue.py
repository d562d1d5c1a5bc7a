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
