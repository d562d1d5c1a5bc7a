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
from slipstream.errors import UnsupportedOption
from slipstream.kernels import registry
from slipstream.policies import NoSkipping, Random, RowImportance, Skipper


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
