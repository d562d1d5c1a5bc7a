"""PSSE's scores and cuts, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policies.support import TwoTables, make_batch

from slipstream.errors import ConfigError
from slipstream.policies import PSSE, Progress, Skipper, build_policy
from slipstream.staleness import CountedRows, Rule, SketchedRows
from slipstream.training.config import TrainConfig
from slipstream.training.run import check_order

SCORES = ["rows", "sketch"]
USERS, ITEMS = [0, 0, 0, 0, 1, 1, 2], [3, 3, 3, 3, 3, 3, 3]


def decided(policy: PSSE, users: list[int] = USERS, items: list[int] = ITEMS, rows: int = 4) -> list[list[int]]:
    """The gates after one decision: 1 open, 0 frozen."""
    model = TwoTables(rows=rows)
    skipper = Skipper(model, policy)
    policy.update_gates(Progress(0, 0, 100))
    for table, ids in zip(skipper.tables.values(), (users, items), strict=True):
        policy.observe_lookups(table, torch.tensor(ids))
    policy.update_gates(Progress(1, 7, 200))
    return [[gate // 255 for gate in table.gate.tolist()] for table in skipper.tables.values()]


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("half_life", [None, 1000.0])
@pytest.mark.parametrize(
    ("settings", "users", "items"),
    [
        # Of 14 accesses item 3 has 7, user 0 has 4, user 1 has 2, user 2 has 1; user 3 and items 0 to 2 none.
        ({"budget": 0.75}, [1, 0, 0, 0], [0, 0, 0, 1]),
        ({"budget": 1.0}, [1, 1, 1, 0], [0, 0, 0, 1]),
        ({"cut": "top_k", "top_k": 1}, [0, 0, 0, 0], [0, 0, 0, 1]),
        ({"cut": "top_k", "top_k": 3}, [1, 1, 0, 0], [0, 0, 0, 1]),
        ({"cut": "top_k", "top_k": 100}, [1, 1, 1, 0], [0, 0, 0, 1]),
        ({"cut": "top_k", "top_k": 1, "scope": "table"}, [1, 0, 0, 0], [0, 0, 0, 1]),
        ({"cut": "min_count", "min_count": 1.9}, [1, 1, 0, 0], [0, 0, 0, 1]),
        ({"cut": "min_count", "min_count": 8}, [0, 0, 0, 0], [0, 0, 0, 0]),
        # A row of the tail is open whatever the cut: users 2 and 3 and items 0 to 2 were looked up less than twice.
        ({"cut": "top_k", "top_k": 1, "protect_tail": 2}, [0, 0, 1, 1], [1, 1, 1, 1]),
    ],
)
def test_the_cuts(
    settings: dict[str, object], users: list[int], items: list[int], half_life: float | None, scores: str
) -> None:
    policy = PSSE(half_life=half_life, warmup_steps=1, every=1, scores=scores, **settings)
    assert decided(policy) == [users, items]
    open_rows = sum(users) + sum(items)
    assert policy.report()["share_of_rows_updated"] == pytest.approx(open_rows / 8)


@pytest.mark.parametrize("scores", SCORES)
def test_equal_rows_beyond_k_are_closed_in_order(scores: str) -> None:
    policy = PSSE(cut="top_k", top_k=3, half_life=None, warmup_steps=1, scores=scores)
    assert decided(policy, [3, 2, 1, 0], [0, 1, 2, 3]) == [[1, 1, 1, 0], [0, 0, 0, 0]]
    assert policy.report()["share_of_accesses_kept"] == pytest.approx(3 / 8)


@pytest.mark.parametrize("scores", SCORES)
def test_a_half_life_in_seconds(scores: str) -> None:
    # User 0: eight accesses long ago; user 1: two now. 60 seconds at a half-life of 10 make eight count 1/8.
    model = TwoTables(rows=2)
    policy = PSSE(0.5, half_life=10.0, half_life_unit="seconds", warmup_steps=2, every=1, scope="table", scores=scores)
    user, item = Skipper(model, policy).tables.values()
    policy.update_gates(Progress(0, 0, 1_600_000_000))
    policy.observe_lookups(user, torch.tensor([0] * 8))
    policy.observe_lookups(item, torch.tensor([0]))
    policy.update_gates(Progress(1, 8, 1_600_000_060))
    policy.update_gates(Progress(1, 8, 1_600_000_030))  # time that goes back does not age anything
    policy.observe_lookups(user, torch.tensor([1] * 2))
    policy.update_gates(Progress(2, 10, 1_600_000_060))
    assert model.user.table.gate.tolist() == [0, 255]
    with pytest.raises(ConfigError, match="half_life_unit=seconds needs data with a time; prepare the data"):
        policy.update_gates(Progress(3, 10, None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cut": "top_k"}, "cut=top_k needs top_k, 1 or more"),
        ({"cut": "min_count"}, "cut=min_count needs min_count, above 0"),
        ({"top_k": 3}, "top_k belongs to cut=top_k, and cut is share"),
        ({"cut": "top_k", "top_k": 3, "min_count": 1}, "min_count belongs to cut=min_count, and cut is top_k"),
        ({"cut": "top_k", "top_k": 0}, "top_k: .*greater than or equal to 1"),
        ({"cut": "min_count", "min_count": 0}, "min_count: .*greater than 0"),
        (
            {"cut": "top_k", "top_k": 9, "scores": "sketch", "sketch_heavy": 8},
            r"in \[1, sketch_heavy=8\]",
        ),
        ({"protect_tail": 256}, "protect_tail: .*less than or equal to 255"),
        ({"sketch_heavy": 7}, "sketch_heavy: .*greater than or equal to 8"),
        ({"sketch_depth": 0}, "sketch_depth: .*greater than or equal to 1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PSSE(**settings)


def test_only_a_share_has_a_budget() -> None:
    with pytest.raises(ConfigError, match="no budget with cut=top_k; set cut=share"):
        PSSE(cut="top_k", top_k=3).set_budget(0.5)
    policy = PSSE()
    policy.set_budget(0.25)
    assert policy.config.budget == 0.25


@pytest.mark.parametrize("scores", SCORES)
def test_state_round_trip(scores: str) -> None:
    def made(seed: int) -> tuple[TwoTables, PSSE]:
        model = TwoTables(rows=6)
        policy = PSSE(0.5, warmup_steps=1, every=1, scores=scores, protect_tail=2, half_life_unit="seconds")
        Skipper(model, policy, seed=seed)
        return model, policy

    def step(model: TwoTables, policy: PSSE, number: int, ids: list[int]) -> None:
        for table in (model.user.table, model.item.table):
            policy.observe_lookups(table, torch.tensor(ids))
        policy.update_gates(Progress(number, 4 * number, 1000 * number))

    model, policy = made(0)
    step(model, policy, 1, [0, 0, 1, 2, 5])
    other_model, other = made(1)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other_model.user.table.gate, model.user.table.gate)
    assert other.report() == policy.report()
    for m, p in ((model, policy), (other_model, other)):
        step(m, p, 2, [5, 5, 5, 1])
    assert torch.equal(other_model.item.table.gate, model.item.table.gate)
    assert other.report() == policy.report()
    wrong = PSSE(scores="sketch" if scores == "rows" else "rows")
    Skipper(TwoTables(rows=6), wrong)
    with pytest.raises(ConfigError, match="of tables"):
        wrong.load_state_dict(policy.state_dict())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 11), min_size=1, max_size=200),
    st.sampled_from([Rule("share", 0.3), Rule("share", 0.9), Rule("share", 1), Rule("top_k", 3), Rule("min_count", 2)]),
    st.sampled_from([torch.int32, torch.int64]),
)
def test_a_roomy_sketch_keeps_what_counts_keep(ids: list[int], rule: Rule, dtype: torch.dtype) -> None:
    num_rows = {"a": 12, "b": 12}
    counted = CountedRows(num_rows, None)
    sketched = SketchedRows(num_rows, None, width=1 << 12, depth=4, heavy=1 << 10, seed=0)
    for rows in (counted, sketched):
        assert rows.keep(["a", "b"], rule) is None
        rows.add("a", torch.tensor(ids, dtype=dtype))
        rows.add("b", torch.tensor(ids[::2], dtype=dtype))
    one, two = counted.keep(["a", "b"], rule), sketched.keep(["a", "b"], rule)
    assert all(torch.equal(one.marks[name], two.marks[name]) for name in num_rows)
    assert one.rows == two.rows
    assert one.share == pytest.approx(two.share)


def test_every_epoch_fades_by_its_own_time() -> None:
    model, day = TwoTables(rows=2), 86_400
    policy = PSSE(
        cut="min_count", min_count=17.0, half_life=1.0 * day, half_life_unit="seconds", warmup_steps=1, every=1
    )
    user, _ = Skipper(model, policy).tables.values()
    for step in range(120):
        policy.update_gates(Progress(step, 0, step % 40 * day, epoch=step // 40))
        if step % 40 == 39:  # eight a day, of which those of the days before count half, a quarter …
            assert model.user.table.gate.tolist() == [0, 0]
        policy.observe_lookups(user, torch.tensor([0] * 8))


def test_an_older_state_or_slice_begins_at_its_own_time() -> None:
    policy = PSSE(0.5, half_life=10.0, half_life_unit="seconds")
    first = Skipper(TwoTables(rows=2), policy)
    policy.update_gates(Progress(0, 0, 1000, epoch=1))
    state = policy.state_dict()
    other = PSSE(0.5, half_life=10.0, half_life_unit="seconds")
    second = Skipper(TwoTables(rows=2), other)
    rows = {"user.weight": 2, "item.weight": 2}
    other.continue_from(state, rows)
    other.update_gates(Progress(0, 0, 400, epoch=1))
    assert other.state_dict()["clock"] == 400
    other.load_state_dict({name: value for name, value in state.items() if name != "epoch"})
    other.update_gates(Progress(0, 0, 1100, epoch=0))
    other.update_gates(Progress(0, 0, 900, epoch=0))
    assert other.state_dict()["clock"] == 1100
    assert first is not second


def test_one_sample_from_the_future_does_not_carry_the_clock_away() -> None:
    policy = PSSE(0.5, half_life=10.0, half_life_unit="seconds")
    skipper = Skipper(TwoTables(), policy)
    for start in (0, 100):
        batch = make_batch(start, 100)
        time = torch.arange(start, start + 100)
        time[-1] = 95_000_000_000
        list(skipper.push(replace(batch, time=time)))
    assert policy.state_dict()["clock"] == 149


@pytest.mark.parametrize(
    ("shuffle", "half_life", "inputs"),
    [(True, 5.0, None), (False, 5.0, "order"), (True, None, None), (False, 5.0, None)],
)
def test_time_and_another_order_of_the_samples_are_refused_where_a_training_begins(
    shuffle: bool, half_life: float | None, inputs: str | None
) -> None:
    timed = {"name": "psse", "half_life_unit": "seconds", "half_life": half_life}
    policy = timed if inputs is None else {"name": "combine", "inputs": {"name": inputs}, "rows": timed}
    config = TrainConfig.model_validate({"data": "d", "shuffle": shuffle, "policy": policy})
    if half_life is not None and (shuffle or inputs):
        with pytest.raises(ConfigError, match=r"goes by the samples' time .*; use shuffle=false"):
            check_order(config, build_policy(config.policy))
    else:
        check_order(config, build_policy(config.policy))


def test_a_continued_run_that_is_resumed_before_its_first_step_begins_at_its_own_time() -> None:
    policies = [PSSE(0.5, half_life=10.0, half_life_unit="seconds") for _ in range(3)]
    skippers = [Skipper(TwoTables(rows=2), policy) for policy in policies]
    policies[0].update_gates(Progress(0, 0, 1000))
    policies[1].continue_from(policies[0].state_dict(), {"user.weight": 2, "item.weight": 2})
    policies[2].load_state_dict(policies[1].state_dict())
    for policy in policies[1:]:
        policy.update_gates(Progress(0, 0, 400))
        assert policy.state_dict()["clock"] == 400 and len(skippers) == 3


@pytest.mark.parametrize("time", [-86_400, 1_700_000_000_000_000_000])
def test_a_clock_before_1970_or_in_nanoseconds_comes_back(time: int) -> None:
    policies = [PSSE(0.5, half_life=10.0, half_life_unit="seconds") for _ in range(2)]
    skippers = [Skipper(TwoTables(rows=2), policy) for policy in policies]
    policies[0].update_gates(Progress(0, 0, time))
    policies[1].load_state_dict(policies[0].state_dict())
    assert policies[1].state_dict()["clock"] == time and len(skippers) == 2
