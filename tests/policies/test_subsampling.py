"""Subsampling: whose lookups it leaves out, and what becomes of gates when another policy follows."""

from __future__ import annotations

import pytest
import torch
from tests.policies.support import TwoTables, make_batch

from slipstream import optim
from slipstream.policies import Random, Skipper, Subsampling

HOT = 4


def train(model: TwoTables, skipper: Skipper, steps: range) -> list[torch.Tensor]:
    """Half of each batch's lookups fall on the first rows; returns each step's change of the user table's rows."""
    optimizer, changes = optim.SGD(model.parameters(), lr=0.1), []
    for step in steps:
        batch = make_batch(step * 64, 64)
        generator = torch.Generator().manual_seed(step)
        for column in range(2):
            hot = torch.rand(64, generator=generator) < 0.5
            rows = torch.where(hot, torch.randint(0, HOT, (64,), generator=generator), torch.arange(64) % 46 + HOT)
            batch.inputs.ids[:, column] = rows.to(torch.int32)
        for kept in skipper.push(batch):
            before = model.user.table.weight.detach().clone()
            (model.user(kept.inputs.ids[:, 0]) + model.item(kept.inputs.ids[:, 1])).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            changes.append(model.user.table.weight.detach() - before)
    return changes


def test_popular_rows_are_updated_from_a_part_of_their_lookups_and_rare_ones_from_all() -> None:
    model = TwoTables()
    policy = Subsampling(0.7, warmup_steps=10, every=10, half_life=50.0)
    skipper = Skipper(model, policy)
    train(model, skipper, range(10))
    assert skipper.share_of_row_updates_skipped == 0.0
    changes = train(model, skipper, range(10, 110))
    for table in (model.user.table, model.item.table):
        assert table.gate is not None and table.by_sample
        assert (table.gate[:HOT] < 255).all() and (table.gate[HOT:] == 255).all()
    assert skipper.share_of_row_updates_skipped == pytest.approx(0.3 * 100 / 110, abs=0.02)
    moved = torch.stack(changes)[:, :HOT, 0]
    assert (moved != 0).float().mean() > 0.9  # 8 lookups a step, 3 of them kept
    # Each lookup pushes by 0.1: on average all of them do.
    assert float(moved.mean()) == pytest.approx(-0.1 * 32 / HOT, rel=0.05)
    report = policy.report()
    assert report["decisions"] == 10 and report["share_of_accesses_to_skip"] == pytest.approx(0.3, abs=0.01)
    assert report["share_of_rows_thinned"] == pytest.approx(HOT / 50, abs=0.01)


def test_a_budget_of_one_makes_no_gates_and_can_change() -> None:
    model = TwoTables()
    policy = Subsampling(1.0, warmup_steps=5, every=5)
    skipper = Skipper(model, policy)
    train(model, skipper, range(10))
    assert model.user.table.gate is None
    policy.set_budget(0.5)
    train(model, skipper, range(10, 20))
    assert model.user.table.gate is not None and policy.report()["budget"] == 0.5
    policy.set_budget(1.0)
    train(model, skipper, range(20, 30))
    assert (model.user.table.gate == 255).all() and policy.report()["share_of_rows_thinned"] == 0.0


def test_gates_of_the_next_policy_draw_for_whole_rows_again() -> None:
    model = TwoTables()
    skipper = Skipper(model, Subsampling(0.5, warmup_steps=2, every=2))
    train(model, skipper, range(6))
    assert model.user.table.by_sample
    skipper.detach()
    Skipper(model, Random(0.5, level="rows"))
    assert not model.user.table.by_sample
