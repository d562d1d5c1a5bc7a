"""The fused MLP against torch's own modules: values, gradients, and when it steps aside."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from slipstream.models.layers import mlp
from slipstream.models.mlp import MLP


def _twins(sizes: list[int], *, last_relu: bool) -> tuple[MLP, nn.Sequential]:
    torch.manual_seed(0)
    ours = mlp(sizes, last_relu=last_relu)
    return ours, nn.Sequential(*copy.deepcopy(list(ours)))


@pytest.mark.parametrize("last_relu", [True, False])
@pytest.mark.parametrize("sizes", [[3], [3, 1], [13, 64, 16], [7, 33, 5, 1]])
@pytest.mark.parametrize("batch", [0, 1, 130])
@pytest.mark.parametrize("input_grad", [True, False])
def test_values_and_gradients_are_torchs(sizes: list[int], last_relu: bool, batch: int, input_grad: bool) -> None:
    ours, theirs = _twins(sizes, last_relu=last_relu)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(batch, sizes[0])
    inputs = [x.clone().requires_grad_(input_grad) for _ in range(2)]
    weights = torch.randn(batch, sizes[-1])
    outputs = [model(value) for model, value in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(*outputs)
    for output in outputs if outputs[0].requires_grad else ():
        (output * weights).sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)
    if input_grad:
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)


def test_the_gradient_handed_in_stays_as_it_is() -> None:
    ours, _ = _twins([5, 8, 4], last_relu=True)
    handed_in = torch.randn(6, 4)
    before = handed_in.clone()
    ours(torch.randn(6, 5)).backward(handed_in)
    assert torch.equal(handed_in, before)


def test_frozen_layers_get_no_gradient() -> None:
    ours, _ = _twins([5, 8, 4], last_relu=True)
    ours[0].requires_grad_(False)
    ours(torch.randn(6, 5)).sum().backward()
    assert ours[0].weight.grad is None and ours[2].weight.grad is not None


def test_rows_that_are_not_contiguous() -> None:
    ours, theirs = _twins([5, 8, 4], last_relu=False)
    x = torch.randn(5, 9).t()
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("position", [0, 1])
def test_hooks_of_single_layers_are_called(position: int) -> None:
    ours, _ = _twins([5, 8, 4], last_relu=True)
    seen: list[torch.Size] = []
    ours[position].register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    ours(torch.randn(6, 5))
    assert seen == [torch.Size([6, 8])]


def test_autocast_and_double_take_torchs_path() -> None:
    ours, theirs = _twins([5, 8, 4], last_relu=True)
    x = torch.randn(6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
    assert torch.equal(ours.double()(x.double()), theirs.double()(x.double()))
