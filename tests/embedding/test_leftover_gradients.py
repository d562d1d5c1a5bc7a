"""Models are converted and shared as torch's are, though row gradients of the last step are still there."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from slipstream.embedding import EmbeddingCollection, RowGradient, TableConfig, convert
from slipstream.errors import UnsupportedOption

IDS = torch.tensor([1, 4, 1, 0])


def ordinary() -> nn.Module:
    return nn.Sequential(nn.Embedding(6, 6), nn.Linear(6, 1))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    return model


def pair(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """A model of torch and ours, with gradients of two passes, scaled between them."""
    torch.manual_seed(0)
    plain = make()
    mine = convert(copy.deepcopy(plain))
    for model in (plain, mine):
        model(IDS).square().sum().backward()
        for parameter in model.parameters():
            parameter.grad.mul_(0.5)
        model(IDS).sum().backward()
    return plain, mine


def equal(plain: nn.Module, mine: nn.Module) -> None:
    for ours, torchs in zip(mine.parameters(), plain.parameters(), strict=True):
        assert ours.dtype == ours.grad.dtype == torchs.dtype
    assert isinstance(mine[0].weight.grad, RowGradient)
    close = {} if plain[0].weight.dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}  # sums of float32
    torch.testing.assert_close(mine[0].weight.grad.to_dense(), plain[0].weight.grad, **close)


MOVES: dict[str, Callable[[nn.Module], object]] = {
    "double": lambda model: model.double(),
    "bfloat16": lambda model: model.bfloat16(),
    "float": lambda model: model.float(),
    "to": lambda model: model.to("cpu", torch.float64),
    "there and back": lambda model: model.double().float(),
}


@pytest.mark.parametrize("flag", [None, "overwrite", "swap"])
@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("make", [ordinary, tied])
def test_a_model_is_converted_as_a_whole(make, move, flag: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if flag is not None:
        monkeypatch.setattr(torch.__future__, f"get_{flag}_module_params_on_conversion", lambda: True)
    plain, mine = pair(make)
    for model in (plain, mine):
        move(model)
    equal(plain, mine)
    for model in (plain, mine):  # and training goes on
        model(IDS).sum().backward()
    equal(plain, mine)


def test_a_collection_is_converted_as_a_whole() -> None:
    collection = EmbeddingCollection([TableConfig("a", 6, 3), TableConfig("b", 5, 3)], multi_hot=["b"])
    bags = type("Bag", (), {"values": IDS, "offsets": torch.tensor([0, 2, 4])})
    collection(torch.tensor([[1], [5]]), [bags]).square().sum().backward()
    expected = [parameter.grad.to_dense().double() for parameter in collection.parameters()]
    collection.double()
    for parameter, grad in zip(collection.parameters(), expected, strict=True):
        assert parameter.dtype == parameter.grad.dtype == torch.float64
        torch.testing.assert_close(parameter.grad.to_dense(), grad, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("move", [lambda m: m.to("cpu"), lambda m: m.cpu(), lambda m: m.float(), lambda m: m.double()])
def test_in_inference_mode(move) -> None:
    plain, mine = pair(ordinary)
    for model in (plain, mine):
        with torch.inference_mode():
            move(model)
    equal(plain, mine)


def test_a_copy_of_another_dtype_is_independent() -> None:
    _, mine = pair(ordinary)
    grad = mine[0].weight.grad
    before = grad.to_dense()
    wide = grad.to(torch.float64)
    wide.mul_(3.0)
    assert wide.dtype == torch.float64 and grad.dtype == torch.float32
    assert grad.to("cpu") is grad and grad.to("cpu", copy=True) is not grad
    torch.testing.assert_close(grad.to_dense(), before)
    with pytest.raises(UnsupportedOption, match="int64"):
        grad.long()


def test_no_gradients_stay_none() -> None:
    _, mine = pair(ordinary)
    mine.zero_grad(set_to_none=False)
    mine.double()
    assert mine[0].weight.grad.dtype == torch.float64 and not mine[0].weight.grad.blocks


MEMORY = """
import torch, slipstream as sl
from torch import nn
model = sl.convert(nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 1)))
model(torch.arange(6)).sum().backward()
grad = model[0].weight.grad
before = grad.to_dense()
model.share_memory()
assert model[0].weight.is_shared() and grad.share_memory_() is grad
for refused in (lambda: grad.apply_(abs), grad.__dlpack__):
    try:
        refused()
    except sl.errors.UnsupportedOption:
        pass
    else:
        raise AssertionError
assert torch.equal(grad.to_dense(), before)
sl.optim.SGD(model.parameters(), 0.1).step()
"""


def test_what_asks_for_its_memory_does_not_end_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
