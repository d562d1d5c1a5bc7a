"""Configurations, and what each policy does to gates and inputs, by hand."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter
from tests.policies.support import TwoTables, make_batch

from slipstream import optim
from slipstream.errors import ConfigError
from slipstream.policies import (
    PSSE,
    NoneConfig,
    NoSkipping,
    PolicyConfig,
    Progress,
    PsseConfig,
    Random,
    RandomConfig,
    Skipper,
    build_policy,
)


def test_policies_by_name() -> None:
    assert isinstance(build_policy("none"), NoSkipping)
    assert isinstance(build_policy({"name": "random", "budget": 0.3}), Random)
    policy = build_policy(PsseConfig(budget=0.8, half_life=None, every=7))
    assert isinstance(policy, PSSE)
    assert policy.config == PsseConfig(budget=0.8, half_life=None, every=7)


@pytest.mark.parametrize("config", [NoneConfig(), RandomConfig(level="rows"), PsseConfig(scope="table")])
def test_configuration_round_trip(config: NoneConfig | RandomConfig | PsseConfig) -> None:
    adapter = TypeAdapter(PolicyConfig)
    assert adapter.validate_json(adapter.dump_json(config)) == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("momentum", r"unknown policy 'momentum'; choose one of none, random, psse"),
        ({}, "unknown policy None"),
        ({"name": "random", "budget": 0}, r"budget must be in \(0, 1\], got 0"),
        ({"name": "random", "budget": 1.5}, r"budget must be in \(0, 1\], got 1.5"),
        ({"name": "random", "budget": float("nan")}, r"budget must be in \(0, 1\]"),
        ({"name": "random", "level": "columns"}, "level: .*'inputs' or 'rows'"),
        ({"name": "psse", "budget": -0.1}, r"budget must be in \(0, 1\], got -0.1"),
        ({"name": "psse", "half_life": 0}, "half_life: .*greater than 0"),
        ({"name": "psse", "every": 0}, "every: .*greater than or equal to 1"),
        ({"name": "psse", "warmup_steps": -1}, "warmup_steps: .*greater than or equal to 0"),
        ({"name": "none", "budget": 0.5}, "budget: Extra inputs are not permitted"),
    ],
)
def test_nonsense_is_refused(config: dict[str, object] | str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_policy(config)


@pytest.mark.parametrize("budget", [0.0, 1.01])
def test_constructors_refuse_it_too(budget: float) -> None:
    for policy in (Random, PSSE):
        with pytest.raises(ConfigError, match=r"budget must be in \(0, 1\]"):
            policy(budget)


@pytest.mark.parametrize(("budget", "gate"), [(0.5, 128), (0.25, 64), (0.999, 254), (0.0001, 1)])
def test_random_rows_set_every_gate(budget: float, gate: int) -> None:
    model = TwoTables(rows=5)
    Skipper(model, Random(budget, level="rows"))
    assert model.user.table.gate.tolist() == model.item.table.gate.tolist() == [gate] * 5


def test_a_budget_of_one_skips_nothing() -> None:
    model = TwoTables()
    Skipper(model, Random(1.0, level="rows"))
    assert model.user.table.gate is None
    batch = make_batch(0, 8)
    assert next(Skipper(model, Random(1.0), batch_size=8)([batch])) is batch


def look_up(model: TwoTables, users: list[int], items: list[int]) -> None:
    ids = torch.tensor([users, items]).T
    model(make_batch(0, 1).inputs._replace(ids=ids)).sum().backward()


def test_psse_by_hand_over_the_whole_model() -> None:
    model, policy = TwoTables(rows=4), PSSE(0.75, half_life=None, warmup_steps=2, every=2)
    skipper = Skipper(model, policy)
    policy.update_gates(Progress(0, 0, None))
    look_up(model, [0, 0, 0, 0, 1, 1, 2], [3, 3, 3, 3, 3, 3, 3])
    policy.update_gates(Progress(1, 7, None))
    assert model.user.table.gate is None
    policy.update_gates(Progress(2, 7, None))
    # 14 accesses: item 3 has 7, user 0 has 4 (11 of 14 = 0.786 >= 0.75), user 1 has 2, user 2 has 1.
    assert model.user.table.gate.tolist() == [255, 0, 0, 0]
    assert model.item.table.gate.tolist() == [0, 0, 0, 255]
    assert policy.report()["share_of_accesses_kept"] == pytest.approx(11 / 14)
    assert policy.report()["share_of_rows_updated"] == pytest.approx(2 / 8)
    # Rows are counted while they are gated, and thaw at the next decision when they have become popular.
    look_up(model, [2] * 40, [1] * 40)
    policy.update_gates(Progress(3, 14, None))
    assert model.user.table.gate.tolist() == [255, 0, 0, 0]
    policy.update_gates(Progress(4, 14, None))
    assert model.user.table.gate.tolist() == [0, 0, 255, 0]
    assert model.item.table.gate.tolist() == [0, 255, 0, 0]
    assert skipper.report().details["decisions"] == 2


def test_psse_by_table() -> None:
    model, policy = TwoTables(rows=3), PSSE(0.6, half_life=None, warmup_steps=0, scope="table")
    _skipper = Skipper(model, policy)
    look_up(model, [0, 0, 1], [2, 1, 2])
    policy.update_gates(Progress(1, 3, None))
    assert model.user.table.gate.tolist() == [255, 0, 0]
    assert model.item.table.gate.tolist() == [0, 0, 255]


@pytest.mark.parametrize(("unit", "samples"), [("steps", 0), ("samples", 60)])
def test_psse_forgets_by_half_life(unit: str, samples: int) -> None:
    # User 0: eight accesses long ago; user 1: two now. Six half-lives make eight count 1/8.
    half_life = 1.0 if unit == "steps" else 10.0
    model = TwoTables(rows=2)
    policy = PSSE(0.5, half_life=half_life, half_life_unit=unit, warmup_steps=6, every=1, scope="table")
    _skipper = Skipper(model, policy)
    look_up(model, [0] * 8, [0] * 8)
    for step in range(6):
        policy.update_gates(Progress(step, samples * step // 5, None))
    look_up(model, [1] * 2, [0] * 2)
    policy.update_gates(Progress(6, samples, None))
    assert model.user.table.gate.tolist() == [0, 255]


def test_psse_knows_nothing_before_the_first_lookup() -> None:
    model, policy = TwoTables(), PSSE(warmup_steps=0, every=1)
    Skipper(model, policy)
    policy.update_gates(Progress(1, 0, None))
    assert model.user.table.gate is None


def test_psse_state_round_trip() -> None:
    model, policy = TwoTables(rows=6), PSSE(0.5, warmup_steps=1, every=1)
    _skipper = Skipper(model, policy)
    look_up(model, [0, 0, 1, 2], [3, 3, 3, 4])
    policy.update_gates(Progress(1, 4, None))
    other_model, other = TwoTables(rows=6), PSSE(0.5, warmup_steps=1, every=1)
    _other_skipper = Skipper(other_model, other)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other_model.user.table.gate, model.user.table.gate)
    for m, p in ((model, policy), (other_model, other)):
        look_up(m, [5, 5, 5], [5, 5, 5])
        p.update_gates(Progress(2, 7, None))
    assert torch.equal(other_model.item.table.gate, model.item.table.gate)
    assert other.report() == policy.report()
    small = PSSE()
    small.attach({}, seed=0)
    with pytest.raises(ConfigError, match="of tables"):
        small.load_state_dict(policy.state_dict())


def test_gated_rows_keep_their_weights_in_a_training() -> None:
    model = TwoTables(rows=50)
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    policy = PSSE(0.4, half_life=None, warmup_steps=3, every=1000)
    skipper = Skipper(model, policy)
    generator = torch.Generator().manual_seed(0)
    frozen, before = None, None

    def skewed(start: int):
        batch = make_batch(start, 64)
        ids = (50 * torch.rand(64, 2, generator=generator) ** 3).int()
        batch.inputs = batch.inputs._replace(ids=ids)
        return batch

    for step, batch in enumerate(skipper([skewed(64 * i) for i in range(10)])):
        if step == 3:
            frozen = model.user.table.gate == 0
            before = model.user.weight.detach().clone()
        optimizer.zero_grad()
        (model(batch.inputs) * (batch.labels - 0.5)).mean().backward()
        optimizer.step()
    assert 0 < int(frozen.sum()) < 50
    assert torch.equal(model.user.weight.detach()[frozen], before[frozen])
    assert not torch.equal(model.user.weight.detach()[~frozen], before[~frozen])
    assert 0.2 < skipper.share_of_row_updates_skipped < 0.7
