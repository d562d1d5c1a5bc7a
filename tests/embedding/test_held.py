"""What a step reads of a backward pass is what it was then, whoever writes to the memory in which it came."""

from __future__ import annotations

import copy
from collections.abc import Callable
from threading import Thread

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slipstream import optim
from slipstream.embedding import Embedding, EmbeddingBag, convert, held
from slipstream.errors import UnsupportedOption

LONG = 600
"""Samples of a batch whose gradients are large enough for memory of their own."""


def twins(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The model and the same with row gradients."""
    return model, convert(copy.deepcopy(model))


def step(plain: nn.Module, ours: nn.Module) -> None:
    """A step of each; both end with the same weights."""
    torch.optim.SGD(plain.parameters(), 1.0).step()
    optim.SGD(ours.parameters(), 1.0).step()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-4, atol=1e-4)


def nothing_is_kept() -> bool:
    """Of backward passes that have ended."""
    return all(tensor() is None for tensors in held._passes.values() for tensor, _ in tensors)


WRITES: dict[str, Callable[[np.ndarray, Tensor, np.ndarray], object]] = {
    "by numpy": lambda buffer, _, new: buffer.__setitem__(slice(None), new),
    "in place": lambda _, tensor, new: tensor.copy_(torch.from_numpy(new)),
    "past autograd": lambda _, tensor, new: tensor.data.copy_(torch.from_numpy(new)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("passes", [1, 2])
def test_a_buffer_of_ids_that_is_used_again(write, passes: int) -> None:
    plain, ours = twins(nn.Embedding(50, 8))
    for model in (plain, ours):
        buffer = np.zeros(32, np.int64)
        ids = torch.from_numpy(buffer)
        for number in range(passes):
            write(buffer, ids, np.arange(32) % 5 + 10 * number)
            model(ids).pow(2).sum().backward()
        write(buffer, ids, np.full(32, 49))
    step(plain, ours)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_buffers_of_bags_that_are_used_again(write) -> None:
    torch.manual_seed(0)
    plain, ours = twins(nn.EmbeddingBag(50, 8, mode="sum", include_last_offset=True))
    for model in (plain, ours):
        buffers = np.zeros(6, np.int32), np.zeros(4, np.int32), np.zeros(6, np.float32)
        tensors = [torch.from_numpy(buffer) for buffer in buffers]
        for news in (
            ([1, 2, 3, 1, 2, 3], [0, 1, 1, 6], [0.5, 1, 2, 3, 4, 5]),
            ([4, 4, 4, 5, 6, 7], [0, 3, 4, 6], [1, 1, 1, 0, -1, 2]),
        ):
            for buffer, tensor, new in zip(buffers, tensors, news, strict=True):
                write(buffer, tensor, np.array(new, dtype=buffer.dtype))
            model(tensors[0], tensors[1], tensors[2]).pow(2).sum().backward()
        write(buffers[2], tensors[2], np.full(6, 9, np.float32))
    step(plain, ours)


class Positions(nn.Module):
    """Looked-up rows plus a parameter for each place: in a batch of one their gradients share their memory."""

    def __init__(self, tables: int) -> None:
        super().__init__()
        self.items = nn.ModuleList(nn.Embedding(50, 64) for _ in range(tables))
        self.places = nn.Parameter(torch.randn(LONG, 64 * tables))

    def forward(self, ids: Tensor) -> Tensor:
        return torch.cat([table(ids) for table in self.items], -1) + self.places.unsqueeze(0)


@pytest.mark.parametrize("tables", [1, 2])
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("clip", [False, True])
def test_a_parameter_whose_gradient_lies_where_the_rows_does(tables: int, passes: int, clip: bool) -> None:
    torch.manual_seed(0)
    plain, ours = twins(Positions(tables))
    for number in range(passes):
        ids, factors = torch.randint(0, 50, (1, LONG)), torch.randn(1, LONG, 64 * tables)
        for model in (plain, ours):
            (model(ids) * factors).sum().backward()
            if clip and number == passes - 1:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    step(plain, ours)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_gradient_that_was_passed_in_and_is_written_to(parts: int) -> None:
    plain, ours = twins(nn.Embedding(50, 64))
    ids = torch.arange(LONG) % 50
    for model in (plain, ours):
        given = torch.ones(parts * LONG, 64)
        for value in (1.0, 2.0):
            given.fill_(value)
            torch.cat([model(ids)] * parts).backward(given)
        given.fill_(77.0)
    step(plain, ours)


def grads(model: nn.Module) -> list[Tensor]:
    return [block.grad for table in model.items for block, _ in table.weight.grad.blocks]


def test_what_nobody_else_holds_is_not_copied() -> None:
    model = nn.Module()
    model.items = nn.ModuleList(Embedding(50, 64) for _ in range(3))
    first = nn.Linear(4, 64)
    ids, dense = torch.arange(LONG) % 50, torch.randn(LONG, 4)
    torch.cat([first(dense), *(table(ids) for table in model.items)], -1).pow(2).sum().backward()
    assert len({grad.untyped_storage().data_ptr() for grad in grads(model)}) == 1  # parts of one tensor still
    assert grads(model)[0].untyped_storage().nbytes() == 4 * LONG * 4 * 64


def test_without_torchs_counts_everything_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "_holders", None)
    torch.manual_seed(0)
    plain, ours = twins(Positions(2))
    for model in (plain, ours):
        model(torch.arange(LONG).unsqueeze(0) % 50).pow(2).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    step(plain, ours)


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_checkpointing(reentrant: bool) -> None:
    torch.manual_seed(0)
    plain, ours = twins(Positions(2))
    ids = torch.arange(LONG).unsqueeze(0) % 50
    for model in (plain, ours):
        start = torch.zeros((), requires_grad=True)
        for _ in range(2):
            out = checkpoint(lambda _, model=model: model(ids), start, use_reentrant=reentrant)
            out.pow(2).sum().backward()
    step(plain, ours)
    assert nothing_is_kept()


def _halve(parameter: Tensor) -> None:
    parameter.grad.mul_(0.5)


def test_a_gradient_written_to_before_backward_ends_is_refused() -> None:
    model, ids = convert(Positions(1)), torch.arange(LONG).unsqueeze(0) % 50
    model.places.register_post_accumulate_grad_hook(_halve)
    places = model.places.unsqueeze(0)  # made before the lookup: its gradient comes later
    with pytest.raises(UnsupportedOption, match="before the backward pass had ended"):
        (places + model.items[0](ids)).pow(2).sum().backward()
    model.zero_grad()
    (model.places.unsqueeze(0) + model.items[0](ids) * 1.0).pow(2).sum().backward()


def test_a_backward_pass_that_fails_leaves_nothing_in_the_way() -> None:
    plain, ours = twins(nn.Embedding(50, 64))
    ids = torch.arange(LONG) % 50

    def refuse(_: Tensor) -> Tensor:
        raise RuntimeError("no")

    for model in (plain, ours):
        for _ in range(20):
            start = torch.zeros(LONG, 64, requires_grad=True)
            start.register_hook(refuse)
            with pytest.raises(RuntimeError, match="no"):
                (start.exp() * model(ids)).sum().backward()
            model.zero_grad()
        model(ids).pow(2).sum().backward()
    assert len(held._passes) < held._MANY_PASSES
    step(plain, ours)
    ours.zero_grad()
    assert nothing_is_kept()


def test_another_part_of_what_was_concatenated_may_be_written_to() -> None:
    torch.manual_seed(0)
    plain, ours = twins(nn.Embedding(50, 64))
    first, ids = nn.Linear(4, 64), torch.arange(LONG) % 50
    for model in (plain, ours):
        hidden = first(torch.ones(LONG, 4))
        hidden.register_hook(_halve_gradient)
        torch.cat([hidden, model(ids)], 1).pow(2).sum().backward()
    step(plain, ours)


def _halve_gradient(gradient: Tensor) -> None:
    gradient.mul_(0.5)


def test_backward_passes_of_several_threads() -> None:
    pairs = [twins(Positions(2)) for _ in range(4)]

    def train(pair: tuple[nn.Module, nn.Module]) -> None:
        for number in range(5):
            ids = (torch.arange(LONG).unsqueeze(0) + number) % 50
            for model in pair:
                (model(ids) * 1e-2).pow(2).sum().backward()

    threads = [Thread(target=train, args=(pair,)) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pair in pairs:
        step(*pair)
    assert nothing_is_kept()


def test_a_bag_keeps_its_own_ids() -> None:
    bags, ids = EmbeddingBag(10, 4, mode="sum"), torch.arange(6).view(3, 2)
    bags(ids).sum().backward()
    ids.fill_(9)
    assert bags.weight.grad.to_rows()[0].tolist() == [0, 1, 2, 3, 4, 5]
