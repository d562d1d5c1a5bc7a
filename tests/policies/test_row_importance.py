"""Row importance: its budget, which lookups it keeps, and where it ends."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from tests.policies.support import TwoTables, make_batch
from torch import Tensor

from slipstream import optim
from slipstream.data.batch import Inputs
from slipstream.embedding import EmbeddingCollection, TableConfig, tables
from slipstream.errors import ConfigError, UnsupportedOption
from slipstream.kernels import registry
from slipstream.policies import NoSkipping, Random, RowImportance, Skipper
from slipstream.policies.row_importance import _Control


def train(model: TwoTables, skipper: Skipper, steps: range, *, small: float = 1.0) -> Tensor:
    """Sums of looked-up rows; three quarters of the samples push by ``small``. Returns how far rows moved, [R, D]."""
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    before = model.user.table.weight.detach().clone()
    for step in steps:
        for kept in skipper.push(make_batch(step * 64, 64)):
            push = torch.where(kept.index % 4 == 0, 1.0, small)
            (
                model.user(kept.inputs.ids[:, 0]).sum(1) * push + model.item(kept.inputs.ids[:, 1]).sum(1)
            ).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.user.table.weight.detach() - before


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("budget", [0.2, 0.7])
def test_the_budget_is_kept_and_rows_move_as_far_as_without(backend: str, budget: float) -> None:
    with registry.using(backend):
        whole, model = TwoTables(), TwoTables()
        full = train(whole, Skipper(whole, NoSkipping()), range(200), small=0.3)
        skipper = Skipper(model, RowImportance(budget))
        moved = train(model, skipper, range(200), small=0.3)
        assert skipper.share_of_row_updates_skipped == pytest.approx(1 - budget, abs=0.03)
        assert float(moved.sum()) == pytest.approx(float(full.sum()), rel=0.03)


def train_by_turns(steps: int, larger: float, every: int = 2, *, size: int = 64, budget: float = 0.3) -> float:
    """The loss of one step in ``every`` is so many times as large as the others'; the share of accesses kept."""
    model = TwoTables()
    skipper = Skipper(model, RowImportance(budget))
    optimizer = optim.SGD(model.parameters(), lr=0.0)
    for step in range(steps):
        for kept in skipper.push(make_batch(step * size, size)):
            user, item = (part(kept.inputs.ids[:, place]) for place, part in enumerate((model.user, model.item)))
            loss = ((user.sum(1) + item.sum(1) - kept.labels) ** 2).sum()
            (loss * (larger if step % every == 0 else 1.0)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return 1.0 - skipper.share_of_row_updates_skipped


@pytest.mark.parametrize(("larger", "every"), [(1.0, 2), (10.0, 2), (100.0, 2), (100.0, 10), (1000.0, 3)])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_budget_is_kept_in_the_mean_where_large_and_small_gradients_take_turns(
    larger: float, every: int, backend: str
) -> None:
    with registry.using(backend):
        assert train_by_turns(600, larger, every) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("size", [1, 3])
def test_the_budget_is_kept_in_tiny_batches(size: int) -> None:
    assert train_by_turns(2000, 1.0, size=size) == pytest.approx(0.3, abs=0.02)
    assert train_by_turns(2000, 10.0, size=size, budget=0.1) == pytest.approx(0.1, abs=0.02)


def test_what_a_leap_of_gradients_cost_is_paid_back_gently() -> None:
    control = _Control(torch.device("cpu"))
    shares: list[float] = []
    for step in range(400):
        score = 1000.0 if step >= 100 else 1.0
        share = min(1.0, score * float(control.factor))
        control.add(torch.tensor([64 * share, 64 * score, 64.0], dtype=torch.float64), 1.0)
        control.steer(0.05)
        shares.append(share)
    assert max(shares[100:]) == 1.0 and shares[-1] == pytest.approx(0.05, abs=0.001)
    assert min(shares[1:]) > 0.05 / 4, "a leap is no reason to stop"


def test_an_account_goes_on_where_it_was_saved_and_older_ones_owe_nothing() -> None:
    one, other, old = (_Control(torch.device("cpu")) for _ in range(3))
    for spent in (64.0, 60.0, 64.0):
        one.add(torch.tensor([spent, 64.0, 64.0], dtype=torch.float64), 1.0)
        one.steer(0.1)
    state = one.state_dict()
    assert state["owed"] > 1.0
    other.load_state_dict(state)
    assert other.state_dict() == state
    old.load_state_dict({name: value for name, value in state.items() if name != "owed"})
    assert old.state_dict() == {**state, "owed": 0.0}
    with pytest.raises(ConfigError, match="owed is"):
        other.load_state_dict({**state, "owed": float("nan")})


def test_a_gpus_account_is_that_of_a_cpu() -> None:
    """In scalars on the CPU: the same numbers, without waiting for any."""
    numbers, scalars = _Control(torch.device("cpu")), _Control(torch.device("meta"))
    scalars.factor, scalars._owed = (torch.tensor(value, dtype=torch.float64) for value in (torch.inf, 0.0))
    scalars._sums = torch.zeros(3, dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    for step in range(200):
        for _ in range(step % 3):  # some steps have no pass, others two
            score = 64.0 * (100.0 if step % 10 == 0 else 1.0) * (step % 7 > 0)
            sums = torch.tensor([float(torch.rand((), generator=draw)) * 64, score, 64.0], dtype=torch.float64)
            numbers.add(sums.clone(), 1.0)
            scalars.add(sums.clone(), 1.0)
        numbers.steer(0.1)
        scalars.steer(0.1)
        for name, value in scalars.state_dict().items():
            assert torch.as_tensor(value).tolist() == pytest.approx(numbers.state_dict()[name], rel=1e-9), name
    assert numbers.state_dict()["owed"] > 0.0
    again = _Control(torch.device("cpu"))
    again.load_state_dict(scalars.state_dict())
    before = numbers.state_dict()
    for name, value in again.state_dict().items():
        assert value == pytest.approx(before[name], rel=1e-9), name
    numbers.factor = 1.0
    scalars.load_state_dict(before)
    assert float(scalars.factor) == before["factor"] and float(scalars._owed) == before["owed"]


def test_large_gradients_are_kept_and_small_ones_left_out() -> None:
    model = TwoTables()
    policy = RowImportance(0.5, exponent=0.0)
    skipper = Skipper(model, policy)
    train(model, skipper, range(50), small=0.01)
    before = model.user.table.skipped, model.item.table.skipped
    train(model, skipper, range(50, 100), small=0.01)
    user = (model.user.table.skipped - before[0]) / (50 * 64)
    item = (model.item.table.skipped - before[1]) / (50 * 64)
    # Of 1.25 large gradients a sample 4 in 5 fill the budget.
    assert user == pytest.approx(0.79, abs=0.04) and item == pytest.approx(0.2, abs=0.04)


def test_popular_rows_are_left_out_more_often() -> None:
    model = TwoTables(rows=200)
    skipper = Skipper(model, RowImportance(0.5, exponent=1.0))
    optimizer = optim.SGD(model.parameters(), lr=0.0)
    for step in range(60):
        batch = make_batch(step * 64, 64, rows=200)
        batch.inputs.ids[:48, 0] = 3
        batch.inputs.ids[:, 1] = torch.arange(64) + 64 * (step % 3)
        for kept in skipper.push(batch):
            (model.user(kept.inputs.ids[:, 0]) + model.item(kept.inputs.ids[:, 1])).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    user, item = model.user.table, model.item.table
    assert user.skipped / user.lookups > 0.6 > 0.4 > item.skipped / item.lookups


def test_a_budget_of_one_draws_nothing_and_can_change() -> None:
    model = TwoTables()
    policy = RowImportance(1.0)
    skipper = Skipper(model, policy)
    train(model, skipper, range(10))
    assert policy.report() == {"budget": 1.0, "draws": 0}
    policy.set_budget(0.5)
    train(model, skipper, range(10, 100))
    assert policy.report() == {"budget": 0.5, "draws": 180}
    assert skipper.share_of_row_updates_skipped == pytest.approx(0.5 * 0.9, abs=0.03)


@pytest.mark.parametrize("how", ["detached", "dropped", "replaced"])
def test_it_ends_with_its_skipper(how: str) -> None:
    model = TwoTables()
    policy = RowImportance(0.3)
    skipper: Skipper | None = Skipper(model, policy)
    assert skipper is not None and model.user.table.sampler is not None
    assert copy.deepcopy(model).user.table.sampler is None
    if how == "detached":
        skipper.detach()
    elif how == "dropped":
        skipper = None
        gc.collect()
    else:
        Skipper(model, Random(0.5, level="rows"))
    assert model.user.table.sampler is None


def test_a_second_skipper_of_inputs_leaves_it_alone() -> None:
    model = TwoTables()
    skipper = Skipper(model, RowImportance(0.3))
    Skipper(model, Random(0.5), batch_size=64).detach()
    train(model, skipper, range(100))
    assert skipper.share_of_row_updates_skipped == pytest.approx(0.7, abs=0.05)


def test_a_policy_that_is_gone_refuses_nothing() -> None:
    model = Collected()
    policy = RowImportance(0.3)
    policy.attach(tables(model), seed=0)
    del policy
    gc.collect()
    optimizer = optim.Adam(model.parameters(), untouched="dense")
    model(make_batch(0, 64).inputs).sum().backward()
    optimizer.step()


def test_clipping_sees_what_was_drawn_and_dense_gradients_are_its_sum() -> None:
    model = TwoTables()
    skipper = Skipper(model, RowImportance(0.3))
    train(model, skipper, range(20))
    for kept in skipper.push(make_batch(0, 64)):
        model.user(kept.inputs.ids[:, 0]).sum().backward()
    gradient = model.user.table.weight.grad
    assert gradient is not None
    dense = gradient.to_dense()
    assert float(torch.linalg.vector_norm(gradient)) == pytest.approx(float(dense.norm()))
    assert 0 < int((dense[:, 0] != 0).sum()) < 45


class Collected(torch.nn.Module):
    """Two tables of one collection, of which the model reads the second half of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = EmbeddingCollection([TableConfig("user", 50, 32), TableConfig("item", 50, 32)])

    def forward(self, inputs: Inputs) -> Tensor:
        return self.rows(inputs.ids)[:, :, 16:].sum((1, 2))


def test_a_frozen_table_is_neither_drawn_nor_counted() -> None:
    model = Collected()
    user, item = tables(model).values()
    item.weight.requires_grad_(False)
    skipper = Skipper(model, RowImportance(0.5))
    optimizer = optim.SGD([user.weight], lr=0.01)
    for step in range(100):
        for kept in skipper.push(make_batch(step * 64, 64)):
            model(kept.inputs).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert (item.lookups, item.skipped, user.lookups) == (0, 0, 6400)
    assert user.skipped / user.lookups == pytest.approx(0.5, abs=0.03)


def test_a_gradient_that_no_step_takes_is_not_counted() -> None:
    model = Collected()
    skipper = Skipper(model, RowImportance(0.5))
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    for step in range(100):
        for kept in skipper.push(make_batch(step * 64, 64)):
            model(kept.inputs).sum().backward()
            if step % 2:
                optimizer.step()
            optimizer.zero_grad()
    assert sum(table.lookups for table in tables(model).values()) == 50 * 64 * 2
    assert skipper.share_of_row_updates_skipped == pytest.approx(0.5, abs=0.03)


def test_dense_steps_are_refused() -> None:
    model = Collected()
    skipper = Skipper(model, RowImportance(0.5))
    optimizer = optim.Adam(model.parameters(), untouched="dense")
    for kept in skipper.push(make_batch(0, 64)):
        model(kept.inputs).sum().backward()
        with pytest.raises(UnsupportedOption, match=r"row_importance.*lazy"):
            optimizer.step()


def test_a_budget_that_gradients_of_nothing_do_not_fill_is_met_soon_after() -> None:
    model = Collected()
    skipper = Skipper(model, RowImportance(0.5, exponent=0.0))
    optimizer = optim.SGD(model.parameters(), lr=0.0)
    before: list[tuple[int, int]] = []
    for step in range(700):
        if step == 650:
            before = [(table.lookups, table.skipped) for table in tables(model).values()]
        for kept in skipper.push(make_batch(step * 64, 64)):
            every = 5 if step < 600 else 1
            (model(kept.inputs) * (kept.index % every == 0)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    lookups, skipped = (
        sum(getattr(table, what) - old[place] for table, old in zip(tables(model).values(), before, strict=True))
        for place, what in enumerate(("lookups", "skipped"))
    )
    assert skipped / lookups == pytest.approx(0.5, abs=0.05)
