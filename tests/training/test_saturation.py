"""Saturation in whole trainings, with every optimizer of tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from slipstream.data.store import Store
from slipstream.training import TrainConfig, train


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
def test_a_training_skips_updates_and_is_the_same_again(make_store: Callable[..., Store], optimizer: str) -> None:
    policy: dict[str, Any] = {"name": "saturation", "budget": 0.6, "warmup_steps": 10, "every": 10, "min_updates": 10}
    store = make_store()
    config = TrainConfig.model_validate(
        {"data": "x", "model": "dlrm", "batch_size": 50, "optimizer": {"name": optimizer},
         "policy": {**policy, "refresh": 0.2}}
    )  # fmt: skip
    first, again = train(config, store=store), train(config, store=store)
    assert 0.1 < first.share_of_row_updates_skipped < 0.4
    assert first.auc == again.auc
