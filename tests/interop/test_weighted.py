"""Losses that other libraries compute, with the weights of an input policy."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

import slipstream as sl
from slipstream.data import Columns
from slipstream.errors import ConfigError
from slipstream.interop import weighted
from slipstream.policies import NoSkipping, Policy, Random


class Halves(Policy):
    """Keeps even samples always, odd ones with probability 0.5."""

    name = "halves"
    skips_inputs = True

    def keep_probability(self, batch):  # type: ignore[no-untyped-def]
        return torch.where(batch.index % 2 == 0, 1.0, 0.5)


def one_batch(policy: Policy) -> sl.Skipper:
    skipper = sl.Skipper(nn.Linear(1, 1), policy, batch_size=30, to_batch=Columns(["0"]))
    next(iter(skipper([(torch.arange(100),)])))
    return skipper


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(30,), (30, 1)])
def test_functions_and_modules_weigh_each_sample(reduction: str, shape: tuple[int, ...]) -> None:
    skipper = one_batch(Halves())
    assert skipper.weights is not None and skipper.weights.unique().numel() == 2
    logits, labels = torch.randn(shape, requires_grad=True), torch.rand(shape).round()
    each = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").flatten() * skipper.weights
    expected = {"mean": each.mean(), "sum": each.sum(), "none": each.reshape(shape)}[reduction]
    function = weighted(functional.binary_cross_entropy_with_logits, skipper)
    module = weighted(nn.BCEWithLogitsLoss(reduction=reduction), skipper)
    torch.testing.assert_close(function(logits, labels, reduction=reduction), expected)
    torch.testing.assert_close(module(logits, labels), expected)
    assert isinstance(module, nn.Module) and not list(module.parameters())


def test_outside_of_training_and_without_skipping_it_is_the_loss() -> None:
    logits, labels = torch.randn(7), torch.rand(7)
    loss = functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(weighted(loss, one_batch(Halves()))(logits, labels), loss(logits, labels))
    logits.requires_grad_()
    torch.testing.assert_close(weighted(loss, one_batch(NoSkipping()))(logits, labels), loss(logits, labels))


def test_without_skipping_means_are_those_of_torch() -> None:
    skipper, target = one_batch(NoSkipping()), torch.tensor([0, 2, 1, -100])
    logits = torch.randn(4, 3, requires_grad=True)
    for loss, against in (
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1])), target),
        (nn.CrossEntropyLoss(), target),
        (nn.KLDivLoss(reduction="batchmean"), torch.randn(4, 3).softmax(1)),
    ):
        ours = weighted(loss, skipper)
        for _ in range(2):
            torch.testing.assert_close(ours(logits, against), loss(logits, against))


def test_values_keep_their_shape() -> None:
    skipper = one_batch(Halves())
    predicted = torch.randn(30, 3, 2, requires_grad=True)
    values = weighted(functional.mse_loss, skipper)(predicted, torch.zeros(30, 3, 2), reduction="none")
    assert skipper.weights is not None
    torch.testing.assert_close(values, predicted**2 * skipper.weights.view(-1, 1, 1))


def test_means_that_are_not_over_the_values_are_refused() -> None:
    skipper, target = one_batch(Halves()), torch.zeros(30, dtype=torch.int64)
    logits, weights = torch.randn(30, 3, requires_grad=True), torch.ones(3)
    loss = weighted(functional.cross_entropy, skipper)
    torch.testing.assert_close(loss(logits, target), weighted(nn.CrossEntropyLoss(), skipper)(logits, target))
    for call in (
        lambda: loss(logits, target, weights),
        lambda: loss(logits, target, ignore_index=0),
        lambda: weighted(partial(functional.cross_entropy, weight=weights), skipper)(logits, target),
        lambda: weighted(partial(functional.cross_entropy, ignore_index=0), skipper)(logits, target),
        lambda: weighted(nn.CrossEntropyLoss(weights), skipper)(logits, target),
        lambda: weighted(nn.NLLLoss(ignore_index=0), skipper)(logits, target=target),
    ):
        with pytest.raises(ConfigError, match="class weights or ignored targets"):
            call()
    assert loss(logits, target, weights, reduction="sum").isfinite()
    with pytest.raises(ConfigError, match="batchmean"):
        weighted(nn.KLDivLoss(reduction="batchmean"), skipper)(logits, logits.detach())


def test_a_prediction_may_be_of_several_tensors() -> None:
    skipper, logits = one_batch(Halves()), torch.randn(30, requires_grad=True)

    def of_pair(pair: dict[str, torch.Tensor], target: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        return functional.mse_loss(pair["logit"], target, reduction=reduction)

    assert skipper.weights is not None
    expected = (logits.detach() ** 2 * skipper.weights).mean()
    torch.testing.assert_close(weighted(of_pair, skipper)({"logit": logits}, torch.zeros(30)).detach(), expected)
    untrained = weighted(of_pair, skipper)({"logit": logits.detach()}, torch.zeros(30))
    torch.testing.assert_close(untrained, (logits.detach() ** 2).mean())


def test_what_cannot_be_weighted_is_refused() -> None:
    skipper = one_batch(Random(0.5))
    with pytest.raises(ConfigError, match="Linear has no reduction"):
        weighted(nn.Linear(1, 1), skipper)
    with pytest.raises(ConfigError, match="7 values for a batch of 30"):
        weighted(functional.mse_loss, skipper)(torch.randn(7, requires_grad=True), torch.randn(7))
