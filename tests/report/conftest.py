"""A run that was really trained, for what reads run folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests import browser as chromium

from slipstream.data.schema import FeatureInfo
from slipstream.data.store import StoreWriter
from slipstream.training import TrainConfig, train

SATURATION = {"name": "saturation", "budget": 0.5, "warmup_steps": 8, "every": 8, "min_updates": 5}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: gates by saturation, labels that follow user and item."""
    folder, samples, draw = tmp_path_factory.mktemp("trained"), 6000, np.random.default_rng(0)
    ids = np.stack([draw.zipf(1.3, samples) % 60, draw.integers(0, 40, samples)], 1).astype(np.int32)
    labels = (draw.normal(size=60)[ids[:, 0]] + draw.normal(size=40)[ids[:, 1]] > 0).astype(np.float32)
    features = (FeatureInfo(name="user", num_rows=60), FeatureInfo(name="item", num_rows=40))
    with StoreWriter(folder / "data", features, has_time=True) as writer:
        writer.append(ids, np.empty((samples, 0), np.float32), labels, np.arange(samples, dtype=np.int64), [])
        store = writer.commit({})
    model = {"name": "dlrm", "embedding_dim": 4, "top": [8]}
    settings = {"data": folder / "data", "model": model, "policy": SATURATION, "batch_size": 64, "log_every": 5}
    train(TrainConfig.model_validate({**settings, "threads": 1, "out": folder / "run"}), store=store)
    return folder / "run"


@pytest.fixture
def tab(tmp_path: Path):
    """A tab of headless Chromium."""
    if chromium.program() is None:
        pytest.skip("no Chromium on PATH")
    with chromium.browser(tmp_path / "profile") as found:
        yield found
