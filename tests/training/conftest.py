"""Small data sets on which trainings take a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from slipstream.data.schema import FeatureInfo
from slipstream.data.store import Store, StoreWriter

FEATURES = (
    FeatureInfo(name="user", num_rows=60),
    FeatureInfo(name="item", num_rows=40),
    FeatureInfo(name="tags", num_rows=9, multi_hot=True),
)


def write_store(path: Path, samples: int, *, all_positive: bool = False, seed: int = 0) -> Store:
    """Labels follow the parity of user and item, one dense column and a bag; enough to learn in a few hundred steps."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, 60, samples), rng.integers(0, 40, samples)], 1).astype(np.int32)
    dense = rng.normal(size=(samples, 1)).astype(np.float32)
    effects = rng.normal(size=60)[ids[:, 0]] + rng.normal(size=40)[ids[:, 1]] + dense[:, 0]
    labels = (effects + rng.logistic(size=samples) * 0.5 > 0).astype(np.float32)
    if all_positive:
        labels[:] = 1
    lengths = rng.integers(0, 3, samples)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = rng.integers(0, 9, offsets[-1]).astype(np.int32)
    with StoreWriter(path, FEATURES, dense=("price",), has_time=True) as writer:
        writer.append(ids, dense, labels, np.arange(samples, dtype=np.int64), [(values, offsets)])
        return writer.commit({})


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Store]:
    """Makes a small store; see :func:`write_store`."""

    def make(samples: int = 6000, *, name: str = "store", all_positive: bool = False, seed: int = 0) -> Store:
        return write_store(tmp_path / name, samples, all_positive=all_positive, seed=seed)

    return make
