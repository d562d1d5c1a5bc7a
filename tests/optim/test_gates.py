"""Gates through the optimizer: what they skip, what they cost, what is counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.backends import BACK_ENDS, load
from tests.interpreter import ON_GPU
from torch import Tensor, nn

from slipstream import optim
from slipstream.embedding import FROZEN, OPEN, Embedding
from slipstream.errors import UnsupportedOption
from slipstream.kernels import registry
from slipstream.kernels.hashing import gate_draw

pytestmark = pytest.mark.filterwarnings("ignore::slipstream.kernels.parallel.SlowPathWarning")


@pytest.fixture(params=BACK_ENDS, autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test on each back end's kernels; by the interpreter those of the GPU take tensors of the CPU."""
    if ON_GPU and request.param == "cuda":
        pytest.skip("these take tensors of the CPU; tests/gpu trains on the GPU")
    load(request.param)
    with registry.using(request.param):
        yield request.param


ALL = [optim.SGD, optim.Adagrad, optim.RowwiseAdagrad, optim.Adam, optim.AdamW]


def run(kind: type[torch.optim.Optimizer], gate: Tensor | None, steps: int = 5, **options: object):
    torch.manual_seed(0)
    table = Embedding(8, 3)
    table.table.set_gate(gate)
    optimizer = kind(table.parameters(), lr=0.1, **options)
    for seed in range(steps):
        ids = torch.randint(0, 8, (20,), generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        table(ids).square().sum().backward()
        optimizer.step()
    return table, optimizer.state[table.weight]


@pytest.mark.parametrize("on_skip", ["freeze", "catch_up"])
@pytest.mark.parametrize("kind", ALL)
def test_frozen_rows_keep_every_bit_of_weight_and_state(kind: type[torch.optim.Optimizer], on_skip: str) -> None:
    options = {"on_skip": on_skip} | ({"momentum": 0.9} if kind is optim.SGD else {})
    gate = torch.tensor([FROZEN, OPEN] * 4, dtype=torch.uint8)
    start, _ = run(kind, None, 0)
    free, free_state = run(kind, None, **options)
    gated, state = run(kind, gate, **options)
    assert torch.equal(gated.weight[::2], start.weight[::2])
    assert torch.equal(gated.weight[1::2], free.weight[1::2]) and (gated.weight[1::2] != start.weight[1::2]).all()
    for name, value in state.items():
        if isinstance(value, Tensor):
            assert (value[::2] == 0).all() and torch.equal(value[1::2], free_state[name][1::2]), name


def test_open_gates_change_nothing() -> None:
    free, _ = run(optim.Adam, None)
    opened, _ = run(optim.Adam, torch.full((8,), OPEN, dtype=torch.uint8))
    assert torch.equal(free.weight, opened.weight)


def test_draws_follow_the_step_and_the_seed_of_the_optimizer() -> None:
    table = Embedding(1000, 2)
    table.table.open_gate().fill_(100)
    optimizer = optim.SGD(table.parameters(), lr=0.1)
    rows = torch.arange(1000)
    skipped = 0
    for step, seed in ((1, 0), (2, 0), (3, 5)):
        optimizer.gate_seed = seed
        before = table.weight.detach().clone()
        optimizer.zero_grad()
        table(rows).sum().backward()
        optimizer.step()
        updated = gate_draw(rows, step, seed << 20) < 100
        assert torch.equal((table.weight != before).all(dim=1), updated)
        skipped += int((~updated).sum())
    assert (table.table.lookups, table.table.skipped) == (3000, skipped)


def test_gates_may_be_opened_replaced_and_removed_between_steps() -> None:
    table = Embedding(4, 2)
    nn.init.zeros_(table.weight)
    optimizer = optim.SGD(table.parameters(), lr=1.0)
    gates = [None, [0, 0, 255, 255], "row 0", [0, 0, 0, 255], None]
    for gate in gates:
        if gate == "row 0":
            table.table.open_gate()[0] = OPEN  # in place
        else:
            table.table.set_gate(None if gate is None else torch.tensor(gate, dtype=torch.uint8))
        optimizer.zero_grad()
        table(torch.arange(4)).sum().backward()
        optimizer.step()
    assert (-table.weight[:, 0]).tolist() == [3.0, 2.0, 4.0, 5.0]


def test_lookups_of_several_passes_are_counted_once_each_and_padding_never() -> None:
    table = Embedding(4, 2, padding_idx=0)
    table.table.open_gate()[1] = FROZEN
    optimizer = optim.SGD(table.parameters(), lr=1.0)
    for _ in range(2):
        table(torch.tensor([0, 1, 1, 2])).sum().backward()
    assert table.table.lookups == 0
    optimizer.step()
    assert (table.table.lookups, table.table.skipped) == (6, 4)


@pytest.mark.parametrize("kind", [optim.Adam, optim.SGD])
def test_gates_and_whole_table_passes_do_not_go_together(kind: type[torch.optim.Optimizer]) -> None:
    with pytest.raises(UnsupportedOption, match="gate"):
        run(kind, torch.tensor([FROZEN] + [OPEN] * 7, dtype=torch.uint8), untouched="dense")
    table = Embedding(4, 2)
    table.table.open_gate()[0] = FROZEN
    optimizer = kind(table.parameters(), lr=0.1)
    (table(torch.tensor([1])).sum() + table.weight.sum()).backward()
    before = table.weight.detach().clone()
    with pytest.raises(UnsupportedOption, match="gate"):
        optimizer.step()
    assert torch.equal(table.weight, before) and table.weight.grad is not None


@pytest.mark.parametrize("kind", ALL)
def test_gates_and_skipping_take_at_most_six_bytes_a_row(kind: type[torch.optim.Optimizer]) -> None:
    def kept(gated: bool) -> int:
        table = Embedding(1000, 16)
        if gated:
            table.table.open_gate()[::2] = 128
        optimizer = kind(table.parameters(), lr=0.1, on_skip="catch_up" if gated else "freeze")
        table(torch.tensor([1, 2])).sum().backward()
        optimizer.step()
        held = [*vars(table.table).values(), *vars(table.site).values(), *optimizer.state[table.weight].values()]
        return sum(value.nbytes for value in held if isinstance(value, Tensor))

    assert kept(True) - kept(False) <= 6 * 1000


def test_row_wise_adagrad_keeps_four_bytes_a_row() -> None:
    _, state = run(optim.RowwiseAdagrad, None)
    assert sum(value.nbytes for value in state.values() if isinstance(value, Tensor)) == 4 * 8


def test_tables_and_seeds_draw_apart() -> None:
    def updated(seed: int) -> list[Tensor]:
        model = torch.nn.ModuleList(Embedding(1000, 2) for _ in range(2))
        for table in model:
            table.table.open_gate().fill_(128)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        optimizer.gate_seed = seed
        before = [table.weight.detach().clone() for table in model]
        sum(table(torch.arange(1000)).sum() for table in model).backward()
        optimizer.step()
        return [(table.weight != old).all(dim=1) for table, old in zip(model, before, strict=True)]

    draws = [*updated(0), *updated(1)]
    for i, one in enumerate(draws):
        for other in draws[i + 1 :]:
            assert 0.4 < float((one == other).float().mean()) < 0.6


def test_a_gate_or_state_that_does_not_fit_is_refused_before_anything_has_moved() -> None:
    for spoil in ("gate", "dtype", "state"):
        table, dense = Embedding(10, 4), torch.nn.Linear(4, 1)
        optimizer = optim.Adam([*table.parameters(), *dense.parameters()])
        if spoil == "gate":
            table.table.gate = torch.zeros(3, dtype=torch.uint8)
        elif spoil == "dtype":
            table.table.gate = torch.zeros(10, dtype=torch.bool)
        else:
            optimizer.state[table.weight] = {
                "step": 1,
                "exp_avg": torch.zeros(3, 4),
                "exp_avg_sq": torch.zeros(3, 4),
            }
        dense(table(torch.arange(10))).sum().backward()
        said = {
            "gate": r"gate of table .* is torch.uint8 \(3,\) on cpu, not torch.uint8 \(10,\) on cpu; .*set_gate",
            "dtype": r"gate of table .* is torch.bool \(10,\)",
            "state": r"exp_avg of table .* not of shape \(10, 4\)",
        }
        before = dense.weight.detach().clone()
        with pytest.raises(UnsupportedOption, match=said[spoil]):
            optimizer.step()
        assert torch.equal(dense.weight.detach(), before)


def test_a_loaded_state_of_a_table_of_another_size_is_refused() -> None:
    table, other = Embedding(10, 4), optim.Adam(Embedding(3, 4).parameters())
    optimizer = optim.Adam(table.parameters())
    weight = other.param_groups[0]["params"][0]
    other.state[weight] = {"step": 1, "exp_avg": torch.zeros(3, 4), "exp_avg_sq": torch.zeros(3, 4)}
    optimizer.load_state_dict(other.state_dict())
    table(torch.arange(10)).sum().backward()
    with pytest.raises(UnsupportedOption, match=r"exp_avg of table .* not of shape \(10, 4\)"):
        optimizer.step()


def test_ids_changed_in_place_between_forward_and_backward_are_refused() -> None:
    table, ids = Embedding(10, 4), torch.arange(5)
    out = table(ids)
    ids.add_(1)
    with pytest.raises(UnsupportedOption, match="between forward and backward"):
        out.sum().backward()


def test_a_gradient_of_the_weight_alone_does_not_pass_gates() -> None:
    table = Embedding(10, 4)
    optimizer = optim.SGD(table.parameters(), lr=0.1)
    table.table.open_gate()[3] = FROZEN
    table.weight.pow(2).sum().backward()
    with pytest.raises(UnsupportedOption, match="has gates, and its gradient is dense"):
        optimizer.step()
    table.table.gate = None
    before = table.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(table.weight.detach(), 0.8 * before)


def test_gates_of_a_table_that_is_tied_later_hold_for_all_its_lookups() -> None:
    first, second = Embedding(10, 4), Embedding(10, 4)
    first.table.open_gate().fill_(FROZEN)
    second.weight = first.weight
    assert second.table is first.table
    optimizer = optim.SGD(first.parameters(), lr=1.0)
    before = first.weight.detach().clone()
    second(torch.arange(10)).sum().backward()
    optimizer.step()
    assert torch.equal(first.weight, before) and first.table.skipped == 10
