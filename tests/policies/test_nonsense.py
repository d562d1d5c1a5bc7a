"""Settings that make no sense, alone or together or with the data: each ends in one line that says what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.training.conftest import make_store as make_store

from slipstream.data.store import Store
from slipstream.errors import ConfigError
from slipstream.policies import build_policy
from slipstream.policies.configs import POLICIES
from slipstream.systems import SYSTEMS, configure
from slipstream.training import TrainConfig, train

RANGE = r"\(0, 1\]"
ALONE: list[tuple[str, dict[str, Any], str]] = [
    ("random", {"budget": 0}, f"budget must be in {RANGE}, got 0"),
    ("random", {"budget": 1.01}, f"budget must be in {RANGE}"),
    ("random", {"budget": float("nan")}, f"budget must be in {RANGE}"),
    ("random", {"level": "columns"}, "level: .*'inputs' or 'rows'"),
    ("psse", {"budget": 0}, f"budget must be in {RANGE}"),
    ("psse", {"cut": "top_k"}, "cut=top_k needs top_k, 1 or more"),
    ("psse", {"top_k": 5}, "top_k belongs to cut=top_k, and cut is share"),
    ("psse", {"cut": "min_count"}, "cut=min_count needs min_count, above 0"),
    (
        "psse",
        {"cut": "top_k", "top_k": 99, "scores": "sketch", "sketch_heavy": 8},
        r"top_k must be in \[1, sketch_heavy=8",
    ),
    ("psse", {"half_life": 0}, "half_life: .*greater than 0"),
    ("psse", {"protect_tail": 256}, "protect_tail: .*less than or equal to 255"),
    ("psse", {"every": 0}, "every: .*greater than or equal to 1"),
    ("slipstream", {"budget": 0.95}, r"budget must be in \(0.08, 0.92\), or 1"),
    ("slipstream", {"band": 0.5}, "band: .*less than 0.5"),
    ("slipstream", {"hot_bytes": 0}, r"hot_bytes must be in \(0, \d+\], the memory of this machine, got 0"),
    ("slipstream", {"hot_bytes": 1 << 60}, r"hot_bytes must be in \(0, \d+\]"),
    ("slipstream", {"mode": "periodic", "every": 5, "window": 5}, r"window must be in \[1, 4\], below every, got 5"),
    ("slipstream", {"snapshot_share": 0}, f"snapshot_share must be in {RANGE}"),
    ("slipstream", {"sample_rate": 2}, f"sample_rate must be in {RANGE}"),
    ("slipstream", {"alpha": 0}, "alpha: .*greater than or equal to 1"),
    ("order", {"hot_bytes": 1 << 60}, r"hot_bytes must be in \(0, \d+\]"),
    ("order", {"runs": 0}, "runs: .*greater than or equal to 1"),
    ("order", {"rate": 0}, f"rate must be in {RANGE}"),
    ("order", {"patience": 0}, "patience: .*greater than or equal to 1"),
    ("order", {"order": "hot_then_cold"}, "order: .*'cold_then_hot', 'interleaved' or 'adaptive'"),
    ("saturation", {"budget": 0}, f"budget must be in {RANGE}"),
    ("saturation", {"probe": 1}, "probe: .*less than 1"),
    ("saturation", {"refresh": 1}, "refresh: .*less than 1"),
    ("saturation", {"min_updates": 50_000}, "min_updates: .*less than or equal to 40160"),
    ("row_importance", {"budget": 0}, f"budget must be in {RANGE}"),
    ("row_importance", {"exponent": -1}, "exponent: .*greater than or equal to 0"),
    ("row_importance", {"exponent": 2}, "exponent: .*less than or equal to 1"),
    ("subsampling", {"budget": 0}, f"budget must be in {RANGE}"),
    ("subsampling", {"exponent": 0}, "exponent: .*greater than 0"),
    ("importance", {"budget": 0}, f"budget must be in {RANGE}"),
    ("importance", {"budget": 0.2, "floor": 0.3}, r"floor must be at most budget \(0.2\), got 0.3"),
    ("importance", {"bits": 40}, "bits: .*less than or equal to 28"),
    ("guard", {"tolerance": None}, r"tolerance in \(0, 1\) or auc_tolerance in \(0, 0.5\) must be set"),
    ("guard", {"tolerance": 2}, "tolerance: .*less than 1"),
    ("none", {"budget": 0.5}, "budget: .*not permitted"),
    ("combine", {"budget": 0}, f"budget must be in {RANGE}"),
    ("combine", {"split": 1.5}, "split: .*less than or equal to 1"),
    ("combine", {"inputs": "psse"}, "inputs='psse' skips row updates, which is what rows is for"),
    ("combine", {"rows": "random"}, "rows='random' skips inputs, which is what inputs is for"),
    ("combine", {"inputs": "order", "rows": "order"}, "inputs and rows both plan the order"),
    ("combine", {"inputs": "guard", "budget": 0.5}, "policy 'guard' has no budget that could change"),
]


def test_every_policy_is_in_the_table() -> None:
    assert {name for name, _, _ in ALONE} == set(POLICIES)


@pytest.mark.parametrize(("name", "settings", "message"), ALONE)
def test_nonsense_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        build_policy({"name": name, **settings})
    assert "\n" not in str(error.value) and "policy '" in str(error.value)


# 1,800 samples are trained on: 29 batches of 64.
SMALL = {
    "data": "unused",
    "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
    "batch_size": 64,
    "threads": 1,
}
HOT = {"hot_bytes": 16 * 85, "sample_share": 1.0}
TOGETHER: list[tuple[dict[str, Any], str]] = [
    (
        {"name": "psse", "warmup_steps": 29},
        r"warmup_steps=29 leaves no decision in a training of 29 batches; set policy\.warmup_steps in \[0, 27\]",
    ),
    (
        {"name": "saturation", "warmup_steps": 500},
        r"warmup_steps=500 leaves no decision .* set policy\.warmup_steps in \[0, 27\]",
    ),
    (
        {"name": "slipstream", "mode": "periodic", "every": 25, "window": 4},
        r"every=25 and window=4 leave no decision .* in \[5, 24\]",
    ),
    ({"name": "slipstream", "mode": "periodic", "every": 40, "window": 20}, "set window and every lower"),
    ({"name": "slipstream", **HOT, "snapshot_start": 29}, r"set snapshot_start in \[0, \d+\]"),
    (
        {"name": "slipstream", **HOT, "snapshot_start": 1, "alpha": 99},
        r"alpha must be in \[1, \d\], the lookups of an input, got 99",
    ),
    (
        {"name": "slipstream", **HOT, "snapshot_start": 1, "alpha_per_bag": 99},
        r"alpha_per_bag must be in \[1, \d\], what the shortest feature",
    ),
    ({"name": "slipstream", "hot_bytes": 8}, "hot_bytes must be at least 16, one row of the tables, got 8"),
    (
        {"name": "order", "order": "interleaved", "runs": 30},
        r"runs must be in \[1, 29\], the batches of an epoch, got 30",
    ),
    ({"name": "order", "order": "adaptive", "test_samples": 1800}, r"test_samples must be in \[1, 1799\], got 1800"),
    (
        {"name": "combine", "inputs": "random", "rows": {"name": "psse", "warmup_steps": 90}},
        "policy 'psse': warmup_steps=90",
    ),
]


@pytest.mark.parametrize(("policy", "message"), TOGETHER)
def test_what_does_not_fit_the_training_is_refused(
    make_store: Callable[..., Store], policy: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        train(TrainConfig.model_validate({**SMALL, "policy": policy}), store=make_store(2000))
    assert "\n" not in str(error.value)


SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("fae", {"mode": "prequential"}, "policy order orders the samples: use mode=holdout and shuffle=false"),
    ("fae", {"shuffle": True}, "use mode=holdout and shuffle=false"),
    ("slipstream_paper", {"mode": "prequential"}, "policy slipstream orders the samples: use mode=holdout"),
    ("dlrm_reference", {"optimizer": {"untouched": "sometimes"}}, "untouched"),
]


def test_every_system_is_one_of_the_known() -> None:
    assert {name for name, _, _ in SETTINGS} <= set(SYSTEMS)


@pytest.mark.parametrize(("system", "settings", "message"), SETTINGS)
def test_systems_refuse_what_they_cannot_do(system: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        configure(system, TrainConfig.model_validate({"data": "unused", **settings}))
