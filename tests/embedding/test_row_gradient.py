"""A row gradient does what training loops do to gradients."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import Tensor, nn

from slipstream.embedding import Embedding, EmbeddingCollection, RowGradient, TableConfig, convert
from slipstream.errors import SlipstreamError, UnsupportedOption
from slipstream.optim import SGD, Adam
from slipstream.policies import Progress, RowImportance, Skipper

IDS = torch.tensor([1, 4, 1, 0])


def pair() -> tuple[nn.Embedding, Embedding]:
    """A module of torch and ours, with equal weights and gradients."""
    torch.manual_seed(0)
    plain, mine = nn.Embedding(6, 3), Embedding(6, 3)
    mine.load_state_dict(plain.state_dict())
    for module in (plain, mine):
        back(module, 1.0)
    return plain, mine


def back(module: nn.Module, factor: float) -> None:
    (module(IDS) * torch.arange(12.0).view(4, 3)).mul(factor).sum().backward()


def equal(plain: nn.Embedding, mine: Embedding) -> None:
    assert isinstance(mine.weight.grad, RowGradient)
    torch.testing.assert_close(mine.weight.grad.to_dense(), plain.weight.grad)


def test_looks_like_the_table_but_holds_no_memory_of_its_size() -> None:
    table = Embedding(1000, 3)
    table(IDS).sum().backward()
    grad = table.weight.grad
    assert grad.shape == (1000, 3) and grad.dtype == torch.float32 and grad.device == table.weight.device
    assert sum(block.grad.numel() + block.lookups.ids.numel() for block, _ in grad.blocks) == 16
    assert "1000" in repr(grad)


CHANGES = {
    "multiply": lambda grad: grad.mul_(0.5),
    "multiply by a tensor": lambda grad: grad.mul_(torch.tensor(0.5)),
    "divide": lambda grad: grad.div_(4.0),
    "divide by a tensor": lambda grad: grad.div_(torch.tensor(4.0)),
    "add": lambda grad: grad.add_(grad.clone()),
    "add itself": lambda grad: grad.add_(grad),
    "add a multiple": lambda grad: grad.mul_(0.5).add_(grad * 2, alpha=-3),
    "zero": lambda grad: grad.zero_(),
    "multiply several": lambda grad: torch._foreach_mul_([grad], 0.5),
    "multiply several by a tensor": lambda grad: torch._foreach_mul_([grad], torch.tensor(0.5)),
    "divide several": lambda grad: torch._foreach_div_([grad], 4.0),
    "zero several": lambda grad: torch._foreach_zero_([grad]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_in_place_changes_equal_torchs_and_hold_for_earlier_passes_only(change) -> None:
    plain, mine = pair()
    for module in (plain, mine):
        change(module.weight.grad)
    equal(plain, mine)
    for module in (plain, mine):
        back(module, 2.0)
    equal(plain, mine)


@pytest.mark.parametrize("order", [2, 1, float("inf"), 3.0])
def test_norms_equal_torchs(order: float) -> None:
    plain, mine = pair()
    for module in (plain, mine):
        back(module, -0.3)
        module.weight.grad.mul_(0.5)
    expected = torch.linalg.vector_norm(plain.weight.grad, order)
    torch.testing.assert_close(torch.linalg.vector_norm(mine.weight.grad, order), expected)
    torch.testing.assert_close(mine.weight.grad.norm(order), expected)


@pytest.mark.parametrize("alias", [lambda grad: grad.data, lambda grad: grad.detach()])
def test_what_is_done_to_a_detached_one_is_done_to_the_gradient(alias) -> None:
    plain, mine = pair()
    for module in (plain, mine):
        alias(module.weight.grad).mul_(0.5)
        back(module, 2.0)
        alias(module.weight.grad).div_(4.0)
    equal(plain, mine)
    kept, expected = alias(mine.weight.grad), plain.weight.grad
    for module in (plain, mine):
        module.zero_grad()
        back(module, 5.0)
    torch.testing.assert_close(kept.to_dense(), expected)  # what was detached in an earlier step stays
    kept.zero_()
    equal(plain, mine)


def test_a_product_and_a_clone_are_independent() -> None:
    plain, mine = pair()
    grad = mine.weight.grad
    for other in (grad * 2, grad / 2, grad + grad, torch.add(grad, grad, alpha=2), sum([grad, grad]), grad.clone()):
        assert isinstance(other, RowGradient)
        other.mul_(3.0)
        other.zero_()
    equal(plain, mine)


def test_a_gradient_kept_over_zero_grad_keeps_its_values() -> None:
    plain, mine = pair()
    kept, expected = mine.weight.grad, plain.weight.grad
    for module in (plain, mine):
        module.zero_grad()
        back(module, 5.0)
    torch.testing.assert_close(kept.to_dense(), expected)
    equal(plain, mine)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    plain, mine = pair()
    mine.zero_grad(set_to_none=set_to_none)
    plain.zero_grad(set_to_none=set_to_none)
    assert (mine.weight.grad is None) == set_to_none
    for module in (plain, mine):
        back(module, 2.0)
    equal(plain, mine)


def test_one_backward_over_two_lookups_and_dense_gradients_before_and_after() -> None:
    plain, mine = pair()
    for module in (plain, mine):
        module.zero_grad()
        (module(IDS).sum() * module(IDS[:2]).square().sum() + module.weight.square().sum()).backward()
        module.weight.grad.mul_(0.5)
        module.weight.square().sum().backward()
        back(module, 1.0)
    equal(plain, mine)
    torch.testing.assert_close(torch.linalg.vector_norm(mine.weight.grad), torch.linalg.vector_norm(plain.weight.grad))


def unsupported(grad: Tensor, weight: Tensor) -> list:
    return [
        lambda: weight.detach().add_(grad, alpha=-0.1),
        lambda: weight.detach() + grad,
        lambda: grad.clamp_(-1, 1),
        lambda: grad.mul_(torch.ones_like(weight)),
        lambda: grad.to(torch.int64),
        lambda: grad.sign(),
        lambda: torch.optim.SGD([weight], 0.1).step(),
        lambda: torch.optim.Adam([weight], 0.1).step(),
        lambda: torch.optim.Adam([weight], 0.1, foreach=True).step(),
        lambda: torch.optim.SparseAdam([weight], 0.1).step(),
        lambda: torch.save(grad, io.BytesIO()),
        lambda: weight.detach().mul_(grad),
        lambda: torch.ones(()) * grad,
        lambda: grad + 1.0,
        lambda: setattr(grad, "data", torch.ones_like(weight)),
        lambda: nn.utils.clip_grad_value_([weight], 1.0),
        lambda: torch.from_dlpack(grad),
    ]


@pytest.mark.parametrize("which", range(17))
def test_what_it_cannot_do_raises_and_changes_nothing(which: int) -> None:
    _, mine = pair()
    before, grad = mine.weight.detach().clone(), mine.weight.grad.to_dense()
    with pytest.raises((UnsupportedOption, RuntimeError)) as caught:
        unsupported(mine.weight.grad, mine.weight)[which]()
    assert isinstance(caught.value, SlipstreamError) or which == 9  # SparseAdam asks for sparse gradients by itself
    assert torch.equal(mine.weight, before) and torch.equal(mine.weight.grad.to_dense(), grad)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_finite(bad: float) -> None:
    _, mine = pair()
    assert not mine.weight.grad.not_finite()
    back(mine, bad)
    assert mine.weight.grad.not_finite()


def test_a_model_with_gradients_is_freed_with_its_last_name() -> None:
    model = Embedding(6, 3)
    optimizer = SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(IDS).sum().backward()
        optimizer.step()
    table, gradient = weakref.ref(model.table), model.weight.grad
    del model, optimizer
    gc.collect()
    assert table() is None
    with pytest.raises(UnsupportedOption, match="model of this gradient is gone"):
        gradient.to_dense()


def test_the_gradient_of_a_model_that_is_gone_has_a_name_for_people() -> None:
    _, mine = pair()
    grad = mine.weight.grad
    del mine
    gc.collect()
    assert "None" in repr(grad) and "(6, 3)" in repr(grad)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_division_by_zero_gives_what_torch_gives(zero: float) -> None:
    plain, mine = pair()
    for module in (plain, mine):
        module.weight.grad.div_(zero)
    torch.testing.assert_close(mine.weight.grad.to_dense(), plain.weight.grad, equal_nan=True)


def test_added_gradients_are_stepped_by_rows_and_share_no_memory_with_what_they_were() -> None:
    torch.manual_seed(0)
    mine = Embedding(6, 3)
    optimizer = Adam(mine.parameters(), lr=0.1)
    mine(torch.arange(6)).sum().backward()  # moments for every row: a dense step would move them all
    optimizer.step()
    optimizer.zero_grad()
    before = mine.weight.detach().clone()
    back(mine, 1.0)
    first = mine.weight.grad.clone()
    optimizer.zero_grad()
    back(mine, 2.0)
    mine.weight.grad.add_(first)
    assert mine.weight.grad.dense is None
    expected = first.to_dense() * 3
    first.mul_(7.0)
    mine.weight.grad.mul_(2.0)
    torch.testing.assert_close(mine.weight.grad.to_dense(), expected * 2)
    torch.testing.assert_close(first.to_dense(), expected / 3 * 7)
    optimizer.step()
    assert [bool((mine.weight[row] != before[row]).any()) for row in range(6)] == [row in IDS for row in range(6)]


def test_a_gradient_added_to_itself_is_stepped_twice() -> None:
    plain, mine = pair()
    for module, optimizer in ((plain, torch.optim.SGD), (mine, SGD)):
        module.weight.grad.add_(module.weight.grad)
        optimizer(module.parameters(), lr=0.1).step()
    torch.testing.assert_close(mine.weight, plain.weight)


def held_numbers(grad: RowGradient) -> int:
    return sum(block.grad.numel() for block, _ in grad.blocks)


def test_a_table_that_nobody_steps_keeps_no_more_than_a_few_tables() -> None:
    torch.manual_seed(0)
    plain = nn.Embedding(1000, 16)
    mine = convert(copy.deepcopy(plain))
    most = 0
    for _ in range(100):
        ids, factors = torch.randint(0, 1000, (500,)), torch.randn(500, 16)
        for module in (plain, mine):
            (module(ids) * factors).sum().backward()
        most = max(most, held_numbers(mine.weight.grad))
    assert most <= 4 * 1000 * 16
    torch.testing.assert_close(mine.weight.grad.to_dense(), plain.weight.grad)
    for module, optimizer in ((plain, torch.optim.SGD), (mine, SGD)):
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer(module.parameters(), lr=0.1).step()
    torch.testing.assert_close(mine.weight, plain.weight)


def test_gradients_that_are_added_up_elsewhere_keep_no_more_either() -> None:
    mine, total = Embedding(10, 3), None
    for _ in range(100):
        mine.zero_grad()
        back(mine, 1.0)
        total = mine.weight.grad.clone() if total is None else total.add_(mine.weight.grad)
    assert len(total.blocks) < 32
    torch.testing.assert_close(total.to_dense(), 100 * mine.weight.grad.to_dense())


def test_tables_of_a_collection_let_go_of_their_batches_together() -> None:
    collection = EmbeddingCollection([TableConfig("small", 10, 4), TableConfig("large", 400, 4)])
    for _ in range(200):
        ids = torch.stack([torch.randint(0, 10, (50,)), torch.randint(0, 400, (50,))], 1)
        collection(ids).square().sum().backward()
    blocks = [block for name in ("small", "large") for block, _ in collection.tables[name].weight.grad.blocks]
    assert sum(grad.numel() for grad in {id(block): block.grad for block in blocks}.values()) < 10 * 400 * 4


@pytest.mark.parametrize(("passes", "rows", "by_sample"), [(7, 6, False), (40, 100_000, False), (40, 6, True)])
def test_ordinary_accumulation_and_gates_by_sample_keep_every_pass(passes: int, rows: int, by_sample: bool) -> None:
    mine = Embedding(rows, 3)
    mine.table.by_sample = by_sample
    for _ in range(passes):
        back(mine, 1.0)
    assert len(mine.weight.grad.blocks) == passes


@pytest.mark.parametrize("kind", ["open", "gated", "drawn"])
def test_counts_are_those_of_all_passes_whether_they_were_summed_or_not(kind: str) -> None:
    shares: list[float] = []
    for passes in (1, 16):
        model = nn.ModuleDict({"e": Embedding(10, 4)})
        table, ids = model["e"].table, torch.arange(64) % 10
        skipper = Skipper(model, RowImportance(0.5)) if kind == "drawn" else None
        if kind == "gated":
            table.open_gate()[0] = 0
        optimizer = SGD(model.parameters(), lr=0.1)
        for step in range(20):
            if skipper is not None:
                skipper.policy.update_gates(Progress(step, 0, None))
            for _ in range(passes):
                (model["e"](ids) * torch.randn(64, 4)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert table.lookups == 20 * passes * 64
        shares.append(table.skipped / table.lookups)
        del skipper
    assert shares[0] == pytest.approx(shares[1], abs=0.15 if kind == "drawn" else 0.0)
    assert (shares[0] > 0.05) == (kind != "open")


@pytest.mark.parametrize("passes", [1, 2])
def test_zero_grad_frees_the_gradients_of_a_batch(passes: int) -> None:
    table, ids = Embedding(6, 64), torch.arange(6000) % 6
    for _ in range(2):
        for _ in range(passes):
            table(ids).square().sum().backward()
        grads = [weakref.ref(block.grad) for block, _ in table.weight.grad.blocks]
        table.zero_grad()
        assert all(grad() is None for grad in grads)


def test_zero_grad_frees_a_dense_gradient_that_came_after_lookups() -> None:
    table = Embedding(6, 3)
    back(table, 1.0)
    table.weight.square().sum().backward()
    dense = weakref.ref(table.weight.grad.dense)
    table.zero_grad()
    assert dense() is None
