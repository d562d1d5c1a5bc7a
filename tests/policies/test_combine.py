"""An input policy and a row policy together."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tests.policies.support import Chosen, TwoTables, make_batch, pieces

from slipstream import optim
from slipstream.cli.settings import resolve
from slipstream.errors import ConfigError
from slipstream.policies import (
    PSSE,
    Combine,
    CombineConfig,
    NoSkipping,
    Policy,
    PolicyConfig,
    Progress,
    PsseConfig,
    Random,
    RandomConfig,
    Skipper,
    build_policy,
)
from slipstream.training import TrainConfig


class Told(Policy):
    """Writes down what it is told."""

    name = "told"

    def __init__(self, *, losses: bool = False, order: list[int] | None = None) -> None:
        self.wants_losses, self.order, self.plans_order = losses, order, order is not None
        self.calls: list[Any] = []

    def warm_up(self) -> None:
        self.calls.append("warm_up")

    def plan(self, data: Any) -> torch.Tensor | None:
        return None if self.order is None else torch.tensor(self.order)

    def attach(self, tables: Any, *, seed: int) -> None:
        self.calls.append(("attach", sorted(tables), seed))

    def observe_lookups(self, table: Any, ids: Any) -> None:
        self.calls.append("lookups")

    def update_gates(self, progress: Progress) -> None:
        self.calls.append(("gates", progress.step))

    def observe_losses(self, batch: Any, losses: Any) -> None:
        self.calls.append(("losses", len(batch)))

    def state_dict(self) -> dict[str, Any]:
        return {"calls": len(self.calls)}

    def load_state_dict(self, state: Any) -> None:
        self.calls = [None] * state["calls"]


def test_both_parts_are_told_everything() -> None:
    inputs, rows = Told(losses=True), Told()
    policy = Combine(inputs, rows)
    policy.warm_up()
    skipper = Skipper(TwoTables(), policy, seed=3)
    batch = next(skipper.push(make_batch(0, 8)))
    skipper.model_output = skipper.observe(batch, torch.zeros(8))  # type: ignore[attr-defined]
    policy.observe_lookups(None, None)  # type: ignore[arg-type]
    shared = ["warm_up", ("attach", ["item.weight", "user.weight"], 3), ("gates", 0)]
    assert inputs.calls == [*shared, ("losses", 8), "lookups"]
    assert rows.calls == [*shared, "lookups"]
    assert policy.state_dict() == {"inputs": {"calls": 5}, "rows": {"calls": 4}}
    other = Combine(Told(), Told())
    other.load_state_dict(policy.state_dict())
    assert other.state_dict() == policy.state_dict()


def test_the_order_is_that_of_the_part_that_plans_one() -> None:
    assert Combine(Told(order=[2, 1]), Told()).plan(None).tolist() == [2, 1]  # type: ignore[union-attr, arg-type]
    assert Combine(Told(), Told(order=[1])).plans_order
    assert Combine(Told(), Told()).plan(None) is None  # type: ignore[arg-type]


def test_inputs_are_dropped_and_rows_frozen() -> None:
    model = TwoTables()
    policy = Combine(Chosen([1.0, 0.0]), Random(0.5, level="rows"))
    skipper = Skipper(model, policy, batch_size=32)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for batch in skipper(pieces(2048, 32)):
        assert bool((batch.index % 2 == 0).all())
        optimizer.zero_grad()
        model(batch.inputs).mean().backward()
        optimizer.step()
    assert skipper.share_of_inputs_trained == 0.5
    assert skipper.share_of_row_updates_skipped == pytest.approx(0.5, abs=0.05)
    assert skipper.report().details["rows"] == {"policy": "random", "budget": 0.5, "level": "rows"}
    assert (policy.skips_inputs, policy.skips_rows) == (True, True)


@given(st.floats(0.01, 1.0), st.floats(0.0, 1.0))
def test_the_parts_keep_the_budget_together(budget: float, split: float) -> None:
    inputs, rows = Random(0.3), Random(0.3, level="rows")
    Combine(inputs, rows, budget=budget, split=split)
    assert inputs.config.budget * rows.config.budget == pytest.approx(budget)
    assert math.log(inputs.config.budget) == pytest.approx(split * math.log(budget), abs=1e-9)


def test_the_budget_may_change_and_may_be_left_to_the_parts() -> None:
    policy = Combine(Random(0.3), PSSE(0.8))
    assert (policy.inputs.config.budget, policy.rows.config.budget) == (0.3, 0.8)  # type: ignore[attr-defined]
    policy.set_budget(0.25)
    assert (policy.inputs.config.budget, policy.rows.config.budget) == (0.5, 0.5)  # type: ignore[attr-defined]
    assert policy.report()["budget"] == 0.25


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Combine(PSSE(), Random(level="rows")), "inputs='psse' skips row updates, .*; choose a policy"),
        (lambda: Combine(Random(), Random()), "rows='random' skips inputs, .*level=rows"),
        (lambda: Combine(Told(order=[0]), Told(order=[0])), "both plan the order"),
        (lambda: Combine(Random(), PSSE(), split=1.1), r"split must be in \[0, 1\], got 1.1"),
        (lambda: Combine(Random(), PSSE(), budget=0.0), r"budget must be in \(0, 1\], got 0"),
        (lambda: Combine(Random(), NoSkipping(), budget=0.5), "'none' has no budget"),
        (lambda: Combine(*[Told()] * 2), "must be two policies"),
        (lambda: build_policy({"name": "combine", "split": -1}), "split: .*greater than or equal to 0"),
        (lambda: build_policy({"name": "combine", "budget": 2}), r"budget must be in \(0, 1\], got 2"),
        (lambda: build_policy({"name": "combine", "inputs": "momentum"}), "momentum"),
        (lambda: build_policy({"name": "combine", "inputs": {"name": "random", "budget": 0}}), r"in \(0, 1\], got 0"),
        (lambda: build_policy({"name": "combine", "inputs": "combine"}), "combine"),
    ],
)
def test_what_does_not_fit_together(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_from_a_configuration() -> None:
    config = CombineConfig(inputs=RandomConfig(budget=0.9), rows=PsseConfig(every=7), budget=0.36, split=0.5)
    adapter = TypeAdapter(PolicyConfig)
    assert adapter.validate_json(adapter.dump_json(config)) == config
    policy = build_policy(config)
    assert isinstance(policy, Combine)
    assert policy.inputs.config == RandomConfig(budget=0.6)  # type: ignore[attr-defined]
    assert policy.rows.config == PsseConfig(every=7, budget=0.6)  # type: ignore[attr-defined]


def test_from_the_command_line() -> None:
    config = resolve(
        TrainConfig,
        None,
        {"data": "x", "policy.name": "combine", "policy.budget": 0.5},
        [
            "policy.rows.name=saturation",
            "policy.rows.min_updates=4",
            "policy.inputs=random",
            "policy.inputs.budget=0.7",
        ],
    )
    assert config.policy == CombineConfig(
        inputs={"name": "random", "budget": 0.7},  # type: ignore[arg-type]
        rows={"name": "saturation", "min_updates": 4},  # type: ignore[arg-type]
        budget=0.5,
    )
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
