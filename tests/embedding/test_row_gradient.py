"""A row gradient does what training loops do to gradients."""

from __future__ import annotations

import gc
import io
import weakref

import pytest
import torch
from torch import Tensor, nn

from slipstream.embedding import Embedding, RowGradient
from slipstream.errors import SlipstreamError, UnsupportedOption
from slipstream.optim import SGD

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
    for other in (mine.weight.grad * 2, mine.weight.grad.clone()):
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
        lambda: grad.to(torch.float64),
        lambda: grad.sign(),
        lambda: torch.optim.SGD([weight], 0.1).step(),
        lambda: torch.optim.Adam([weight], 0.1).step(),
        lambda: torch.optim.Adam([weight], 0.1, foreach=True).step(),
        lambda: torch.optim.SparseAdam([weight], 0.1).step(),
        lambda: torch.save(grad, io.BytesIO()),
    ]


@pytest.mark.parametrize("which", range(11))
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
