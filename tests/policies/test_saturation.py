"""Saturation: what it gates, thaws, refreshes, refuses and saves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from tests.policies.support import TwoTables, make_batch

from slipstream import optim
from slipstream.errors import ConfigError
from slipstream.policies import PolicyConfig, Progress, Saturation, SaturationConfig, Skipper, build_policy
from slipstream.staleness.moments import codes, updates

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.05),
    "momentum": lambda p: optim.SGD(p, lr=0.01, momentum=0.9),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1),
    "rowwise": lambda p: optim.RowwiseAdagrad(p, lr=0.1),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=0.01),
}


def train(model: TwoTables, skipper: Skipper, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Rows below 25 of each table are pushed one way for ever, the others to and fro."""
    for step in steps:
        rows = torch.arange(50, dtype=torch.int32)
        batch = make_batch(step * 50, 50)
        batch.inputs.ids[:, 0] = batch.inputs.ids[:, 1] = rows
        for kept in skipper.push(batch):
            noise = torch.randn(50, 4, generator=torch.Generator().manual_seed(step))
            push = torch.where(rows[:, None] < 25, torch.ones(1), noise)
            loss = ((model.user(kept.inputs.ids[:, 0]) + model.item(kept.inputs.ids[:, 1])) * push).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_that_only_tremble_are_gated(name: str) -> None:
    model = TwoTables()
    policy = Saturation(0.6, min_updates=20, every=50, warmup_steps=100, probe=1 / 16)
    skipper = Skipper(model, policy)
    train(model, skipper, OPTIMIZERS[name](model.parameters()), range(300))
    for table in (model.user.table, model.item.table):
        gate = table.gate
        assert (gate[:25] == 255).all(), codes(table.signal)
        assert (gate[25:] < 255).float().mean() > 0.6
        assert (table.trail is None) == name.startswith("adam")
    report = policy.report()
    assert report["decisions"] == 4
    assert report["share_of_updates_to_skip"] == pytest.approx(0.4, abs=0.01)
    # 100 steps without gates, then 200 with 40 % gated
    assert skipper.share_of_row_updates_skipped == pytest.approx(0.4 * 2 / 3, abs=0.02)


def test_rows_that_move_again_thaw() -> None:
    model = TwoTables()
    policy = Saturation(0.7, min_updates=10, every=50, warmup_steps=100, probe=0.25)
    skipper = Skipper(model, policy)
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    train(model, skipper, optimizer, range(200))
    frozen = model.user.table.gate < 255
    assert frozen.any() and not frozen[:25].any()
    for step in range(400):  # all rows are pushed one way now; those below 25 tremble
        batch = make_batch(step * 50, 50)
        batch.inputs.ids[:, 0] = batch.inputs.ids[:, 1] = torch.arange(50, dtype=torch.int32)
        for kept in skipper.push(batch):
            push = torch.ones(50, 4)
            push[:25] = torch.randn(25, 4, generator=torch.Generator().manual_seed(step))
            ((model.user(kept.inputs.ids[:, 0]) + model.item(kept.inputs.ids[:, 1])) * push).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert (model.user.table.gate[frozen] == 255).all()
    assert policy.report()["thawed_rows"] >= int(frozen.sum())


def test_the_tail_is_never_gated() -> None:
    model = TwoTables()
    skipper = Skipper(model, Saturation(0.1, min_updates=1000, every=20, warmup_steps=20))
    train(model, skipper, optim.Adam(model.parameters()), range(60))
    assert skipper.share_of_row_updates_skipped == 0 and int(updates(model.user.table.signal).max()) < 1000


def test_a_budget_of_one_makes_no_gates_and_can_change() -> None:
    model = TwoTables()
    policy = Saturation(1.0, min_updates=5, every=10, warmup_steps=10)
    skipper = Skipper(model, policy)
    optimizer = optim.Adam(model.parameters())
    train(model, skipper, optimizer, range(40))
    assert model.user.table.gate is None
    policy.set_budget(0.5)
    train(model, skipper, optimizer, range(40, 80))
    assert policy.report()["budget"] == 0.5 and (model.user.table.gate < 255).any()
    with pytest.raises(ConfigError, match=r"budget must be in \(0, 1\]"):
        policy.set_budget(0.0)


def test_all_gates_open_for_the_refresh_at_the_end() -> None:
    model = TwoTables()
    policy = Saturation(0.5, min_updates=5, every=10, warmup_steps=10, refresh=0.25)
    skipper = Skipper(model, policy, total_samples=80 * 50)
    optimizer = optim.Adam(model.parameters())
    train(model, skipper, optimizer, range(58))
    assert (model.user.table.gate < 255).any()
    train(model, skipper, optimizer, range(58, 80))
    assert (model.user.table.gate == 255).all() and (model.item.table.gate == 255).all()
    assert policy.report()["share_of_rows_gated"] == 0


def test_a_refresh_needs_the_length_of_the_training() -> None:
    model = TwoTables()
    policy = Saturation(0.5, refresh=0.1)
    policy.attach({"user": model.user.table}, seed=0)
    with pytest.raises(ConfigError, match=r"refresh=0\.1 needs the length of the training; pass total_samples"):
        policy.update_gates(Progress(0, 0, None, None))


def test_tables_that_cannot_be_measured_are_refused() -> None:
    class Other:
        num_rows = 3

    with pytest.raises(ConfigError, match="cannot measure table 'x'"):
        Saturation().attach({"x": Other()}, seed=0)  # type: ignore[dict-item]
    model = TwoTables()
    skipper = Skipper(model, Saturation(0.5, every=5, warmup_steps=20))
    with pytest.raises(ConfigError, match="leave no signal"):
        train(model, skipper, optim.Adam(model.parameters(), untouched="dense"), range(100))


def test_decisions_before_the_first_measurement_and_on_tables_that_rest_gate_nothing() -> None:
    model = TwoTables()
    model.item.weight.requires_grad_(False)
    skipper = Skipper(model, Saturation(0.5, every=1, warmup_steps=0, min_updates=1_000))
    train(model, skipper, optim.SGD(model.parameters(), lr=0.1), range(80))
    assert skipper.share_of_row_updates_skipped == 0


@pytest.mark.parametrize("name", ["adam", "rowwise"])
def test_a_training_goes_on_from_its_state_bit_for_bit(name: str) -> None:
    def fresh() -> tuple[TwoTables, Skipper, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = TwoTables()
        policy = Saturation(0.5, min_updates=5, every=10, warmup_steps=20)
        return model, Skipper(model, policy), OPTIMIZERS[name](model.parameters())

    model, skipper, optimizer = fresh()
    train(model, skipper, optimizer, range(55))
    saved = {"model": model.state_dict(), "skipper": skipper.state_dict(), "optimizer": optimizer.state_dict()}
    saved = {key: _copy(value) for key, value in saved.items()}
    train(model, skipper, optimizer, range(55, 100))
    again, skipper2, optimizer2 = fresh()
    again.load_state_dict(saved["model"])
    skipper2.load_state_dict(saved["skipper"])
    optimizer2.load_state_dict(saved["optimizer"])
    train(again, skipper2, optimizer2, range(55, 100))
    assert torch.equal(model.user.weight, again.user.weight)
    assert torch.equal(model.user.table.signal.view(torch.int16), again.user.table.signal.view(torch.int16))
    assert torch.equal(model.item.table.gate, again.item.table.gate)
    assert skipper.policy.report() == skipper2.policy.report()
    with pytest.raises(ConfigError, match="saturation state is of tables"):
        Saturation().load_state_dict(saved["skipper"]["policy_state"])


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"budget": 0}, r"budget must be in \(0, 1\], got 0"),
        ({"min_updates": 0}, "min_updates: .*greater than or equal to 1"),
        ({"probe": 1.0}, "probe: .*less than 1"),
        ({"every": 0}, "every: .*greater than or equal to 1"),
        ({"warmup_steps": -1}, "warmup_steps: .*greater than or equal to 0"),
        ({"half_life": 0}, "half_life: .*greater than 0"),
        ({"refresh": 1.0}, "refresh: .*less than 1"),
    ],
)
def test_nonsense_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_policy({"name": "saturation", **config})


def test_configuration_round_trip() -> None:
    adapter = TypeAdapter(PolicyConfig)
    config = SaturationConfig(budget=0.4, refresh=0.1)
    assert adapter.validate_json(adapter.dump_json(config)) == config
    policy = build_policy(config)
    assert isinstance(policy, Saturation) and policy.config == config
    policy.warm_up()
