"""check_policy: every policy of ours passes, and each broken rule is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from slipstream.policies import Policy, build_policy
from slipstream.policies.configs import POLICIES
from slipstream.testing import check_policy

PSSE = {"name": "psse", "warmup_steps": 10, "every": 5, "half_life": 50.0}
SATURATION = {"name": "saturation", "warmup_steps": 20, "every": 10, "min_updates": 4, "half_life": 100.0}
SLIPSTREAM = {"name": "slipstream", "hot_bytes": 4096, "snapshot_start": 5, "sample_rate": 0.2, "sample_share": 1.0}
IMPORTANCE = {"name": "importance", "warmup_samples": 500, "bits": 10}
GUARD = {"name": "guard", "first_copy": 256, "measure_every": 2, "tolerance": 0.5}

CASES: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "random": [
        ({"budget": 0.4}, {"budget": 0.4, "band": 0.03}),
        ({"budget": 0.4, "level": "rows"}, {"budget": 0.4, "band": 0.03}),
    ],
    "psse": [
        (PSSE | {"budget": 0.7}, {"budget": 0.7}),
        (PSSE | {"budget": 0.7, "scores": "sketch", "sketch_width": 4096, "sketch_heavy": 1024}, {"budget": 0.7}),
        (PSSE | {"half_life_unit": "seconds", "scope": "table", "protect_tail": 3}, {}),
        (PSSE | {"cut": "top_k", "top_k": 50}, {}),
    ],
    "slipstream": [
        (SLIPSTREAM, {}),
        ({"name": "slipstream", "mode": "periodic", "every": 20, "window": 5, "hot_bytes": 4096}, {}),
    ],
    "order": [({"hot_bytes": 4096}, {"budget": 1.0, "band": 0.0})],
    "saturation": [(SATURATION, {}), (SATURATION | {"refresh": 0.2}, {})],
    "subsampling": [({"warmup_steps": 20, "every": 10, "half_life": 100.0}, {})],
    "row_importance": [({"budget": 0.4}, {"budget": 0.4, "band": 0.05}), ({"exponent": 0.0}, {})],
    "importance": [(IMPORTANCE, {"budget": 0.5, "decides_by_batch": True})],
    "guard": [
        (GUARD, {"decides_by_batch": True}),
        (GUARD | {"policy": "importance"}, {"decides_by_batch": True}),
    ],
    "combine": [
        ({"inputs": "random", "rows": PSSE, "budget": 0.49}, {"budget": 0.49}),
        ({"inputs": IMPORTANCE, "rows": SATURATION, "budget": 0.49}, {"decides_by_batch": True}),
        ({"inputs": SLIPSTREAM, "rows": {"name": "random", "level": "rows"}}, {}),
    ],
}
"""By name: settings that fit a small training, and what to check by."""


def cases() -> list[Any]:
    every = [(name, case) for name in POLICIES for case in CASES.get(name, [({}, {})])]
    return [
        pytest.param({"name": name, **config}, options, id=f"{name}-{number}")
        for number, (name, (config, options)) in enumerate(every)
    ]


@pytest.mark.parametrize(("config", "options"), cases())
def test_our_policies_keep_the_rules(config: dict[str, Any], options: dict[str, Any]) -> None:
    check_policy(lambda: build_policy(config), **options)


class Good(Policy):
    """Keeps inputs by their index: a policy with nothing wrong, for others to spoil."""

    name = "good"
    skips_inputs = True
    skips_rows = True

    def __init__(self) -> None:
        self.tables: Any = {}
        self.seen = 0

    def attach(self, tables: Any, *, seed: int) -> None:
        self.tables = tables

    def keep_probability(self, batch: Any) -> Any:
        self.seen += len(batch)
        return (0.25 + 0.5 * (batch.index % 2)).float()

    def update_gates(self, progress: Any) -> None:
        if self.seen > 2000:
            for table in self.tables.values():
                table.open_gate()[0] = 0

    def state_dict(self) -> dict[str, Any]:
        gates = {name: table.gate for name, table in self.tables.items() if table.gate is not None}
        return {"seen": self.seen, "gates": gates}

    def load_state_dict(self, state: Any) -> None:
        self.seen = state["seen"]
        for name, gate in state["gates"].items():
            self.tables[name].open_gate().copy_(gate)


def check(method: str, function: Any, **options: Any) -> None:
    check_policy(type("Spoiled", (Good,), {method: function}), samples=1024, rows=50, **options)


def test_a_policy_of_ones_own() -> None:
    check_policy(Good, samples=4096)


def _write_weights(self: Any, progress: Any) -> None:
    for table in self.tables.values():
        table.weight.data.zero_()


def _write_labels(self: Any, batch: Any) -> None:
    batch.labels.fill_(1)


def _int_gate(self: Any, progress: Any) -> None:
    for table in self.tables.values():
        table.gate = torch.ones(table.num_rows)


@pytest.mark.parametrize(
    ("method", "function", "message"),
    [
        ("keep_probability", lambda self, batch: torch.ones(len(batch)).double(), "float64, not float32"),
        ("keep_probability", lambda self, batch: torch.ones(1), r"shape \(1,\), not \(64,\)"),
        ("keep_probability", lambda self, batch: torch.full((len(batch),), 1.1), r"outside \[0, 1\], or NaN"),
        ("keep_probability", lambda self, batch: torch.full((len(batch),), torch.nan), r"outside \[0, 1\], or NaN"),
        ("keep_probability", lambda self, batch: torch.rand(len(batch)), "two runs with the same seed"),
        ("keep_probability", _write_labels, "writes into the batch"),
        (
            "keep_probability",
            lambda self, batch: torch.full((len(batch),), min(1.0, len(batch) / 80)),
            "other probabilities in a smaller batch",
        ),
        (
            "keep_probability",
            lambda self, batch: torch.full((len(batch),), 0.5 / float(batch.labels[0] + 1)),
            "fails on a batch of 0",
        ),
        ("update_gates", _write_weights, "writes into the weights of .* in update_gates"),
        ("update_gates", _int_gate, r"gate of torch.float32 \(50,\), not uint8 \[R\]"),
        ("state_dict", lambda self: {"policy": object()}, r"an? object in state_dict\(\)\['policy'\]"),
        ("load_state_dict", lambda self, state: None, "another state_dict"),
        ("plan", lambda self, data: torch.arange(data.num_samples), "plans_order is False"),
        ("report", lambda self: {"rows": torch.ones(3)}, r"report\(\) that is not JSON"),
        ("set_budget", lambda self, budget: None, r"accepts a budget of 0.0, outside \(0, 1\]"),
        ("set_budget", lambda self, budget: 1 / 0, r"ZeroDivisionError.* in set_budget\(0.5\), not ConfigError"),
        ("name", "", "has no name"),
    ],
)
def test_a_broken_rule_is_named(method: str, function: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(method, function)


def test_gates_of_a_policy_that_says_it_skips_no_rows() -> None:
    class Gating(Good):
        skips_rows = False

        def update_gates(self, progress: Any) -> None:
            for table in self.tables.values():
                table.open_gate()

    with pytest.raises(AssertionError, match="sets gates and skips_rows is False"):
        check_policy(Gating, samples=1024, rows=50)


def test_state_that_is_left_out_is_found() -> None:
    class Forgetful(Good):
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any) -> None:
            pass

    with pytest.raises(AssertionError, match="goes on differently after load_state_dict"):
        check_policy(Forgetful, samples=3000, rows=50)


def test_a_budget_that_is_not_kept_is_found() -> None:
    with pytest.raises(AssertionError, match=r"leaves 0\.\d+ of the row updates in the second half, budget 0.9 ± 0.1"):
        check_policy(Good, samples=1024, budget=0.9)
