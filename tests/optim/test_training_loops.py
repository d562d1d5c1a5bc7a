"""What training loops do around step(): clipping, loss scaling, autocast, accumulation."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.convergence.models import Model, batches, distance, losses, twins
from torch import Tensor, nn

from slipstream import optim
from slipstream.embedding import RowGradient, convert
from slipstream.errors import SlipstreamError

pytestmark = pytest.mark.filterwarnings("ignore::slipstream.kernels.parallel.SlowPathWarning")


def gradients(model: Model) -> dict[str, Tensor]:
    return {
        name: p.grad.to_dense() if isinstance(p.grad, RowGradient) else p.grad
        for name, p in model.named_parameters()
        if p.grad is not None
    }


@pytest.mark.parametrize("limit", [0.01, 0.3, 100.0])
@pytest.mark.parametrize("clip", [optim.clip_grad_norm_, nn.utils.clip_grad_norm_])
def test_clipping_equals_torch_on_dense_gradients(clip, limit: float) -> None:
    plain, ours = twins()
    for data in batches(2):  # two passes: a row counts with the sum of both
        for model in (plain, ours):
            sum(losses(model, data)).backward()
    expected = nn.utils.clip_grad_norm_(plain.parameters(), limit)
    torch.testing.assert_close(clip(ours.parameters(), limit), expected)
    for name, grad in gradients(plain).items():
        torch.testing.assert_close(gradients(ours)[name], grad, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(clip(ours.parameters(), limit), nn.utils.clip_grad_norm_(plain.parameters(), limit))


def test_clipping_counts_lookups_and_dense_uses_of_one_weight_together() -> None:
    plain, ours = twins()
    data = next(batches(1))
    for model in (plain, ours):
        (sum(losses(model, data)) + model.users.weight.square().sum()).backward()
    expected = nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
    torch.testing.assert_close(optim.clip_grad_norm_(ours.parameters(), 0.1), expected)
    for name, grad in gradients(plain).items():
        torch.testing.assert_close(gradients(ours)[name], grad, rtol=1e-5, atol=1e-8)


def test_clipping_of_one_tensor_and_of_nothing() -> None:
    _, ours = twins()
    assert float(optim.clip_grad_norm_(ours.parameters(), 1.0)) == 0.0
    sum(losses(ours, next(batches(1)))).backward()
    norm = ours.items.weight.grad.to_dense().norm()
    torch.testing.assert_close(optim.clip_grad_norm_(ours.items.weight, 1e9), norm)


def test_a_norm_that_is_not_finite_raises_on_demand() -> None:
    _, ours = twins()
    (losses(ours, next(batches(1)))[0] * float("inf")).backward()
    with pytest.raises(SlipstreamError, match="norm"):
        optim.clip_grad_norm_(ours.parameters(), 1.0, error_if_nonfinite=True)


def test_clipped_training_equals_torch() -> None:
    plain, ours = twins()
    first, second = torch.optim.SGD(plain.parameters(), 2.0), optim.SGD(ours.parameters(), 2.0)
    for data in batches(20):
        for model, optimizer, clip in (
            (plain, first, nn.utils.clip_grad_norm_),
            (ours, second, optim.clip_grad_norm_),
        ):
            optimizer.zero_grad()
            sum(losses(model, data)).backward()
            clip(model.parameters(), 0.05)
            optimizer.step()
    for key, value in plain.state_dict().items():
        assert distance(value, ours.state_dict()[key]) < 1e-6, key


KINDS = {
    "sgd": (optim.SGD, torch.optim.SGD, {}),
    "adagrad": (optim.Adagrad, torch.optim.Adagrad, {}),
    "adam-dense": (optim.Adam, torch.optim.Adam, {"untouched": "dense"}),
}


@pytest.mark.parametrize("unscale", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("name", KINDS)
def test_loss_scaling_equals_torch_and_skips_steps_that_overflow(name: str, unscale: bool) -> None:
    kind, theirs, options = KINDS[name]
    plain, ours = twins()
    first, second = theirs(plain.parameters(), lr=0.1), kind(ours.parameters(), lr=0.1, **options)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3) for _ in range(2)]
    for i, data in enumerate(batches(12)):
        before = copy.deepcopy(ours.state_dict())
        for model, optimizer, scaler in ((plain, first, scalers[0]), (ours, second, scalers[1])):
            optimizer.zero_grad()
            loss = sum(losses(model, data))
            if i in (4, 5):  # only a row's gradient overflows, not the dense ones
                loss = loss + (model.items(data[0][:1]) * float("inf")).sum()
            scaler.scale(loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
        unchanged = all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())
        assert unchanged == (i in (4, 5))
        assert scalers[0].get_scale() == scalers[1].get_scale()
    for key, value in plain.state_dict().items():
        assert distance(value, ours.state_dict()[key]) < 1e-6, key


def test_loss_scaling_of_fused_optimizers() -> None:
    """With ``fused=True`` GradScaler leaves the unscaling to the optimizer."""
    plain, ours = twins()
    first = torch.optim.SGD(plain.parameters(), lr=0.1)
    second = optim.SGD(ours.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for i, data in enumerate(batches(6)):
        first.zero_grad()
        second.zero_grad()
        factor = float("inf") if i == 2 else 1.0
        scaler.scale(sum(losses(ours, data)) * factor).backward()
        scaler.step(second)
        scaler.update()
        if i != 2:
            sum(losses(plain, data)).backward()
            first.step()
    for key, value in plain.state_dict().items():
        assert distance(value, ours.state_dict()[key]) < 1e-6, key


def test_autocast_to_bf16_equals_torch() -> None:
    plain, ours = twins()
    first, second = torch.optim.SGD(plain.parameters(), 0.5), optim.SGD(ours.parameters(), 0.5)
    for data in batches(10):
        for model, optimizer in ((plain, first), (ours, second)):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                out = model(*data[:-1])
                loss = nn.functional.binary_cross_entropy_with_logits(out.float(), data[-1])
            loss.backward()
            optimizer.step()
        assert ours.items.weight.dtype == torch.float32
    for key, value in plain.state_dict().items():
        assert distance(value, ours.state_dict()[key]) < 1e-3, key


def test_scaled_and_clipped_passes_accumulate() -> None:
    """The scale of earlier passes does not leak into later ones."""
    plain, ours = twins()
    feed = list(batches(3))
    for model in (plain, ours):
        sum(losses(model, feed[0])).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        sum(losses(model, feed[1])).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        sum(losses(model, feed[2])).backward()
    torch.optim.SGD(plain.parameters(), 1.0).step()
    optim.SGD(ours.parameters(), 1.0).step()
    for key, value in plain.state_dict().items():
        assert distance(value, ours.state_dict()[key]) < 1e-6, key


class Positions(nn.Module):
    """Rows of a sequence plus a parameter for each place; in a batch of one both get the same gradient's memory."""

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.items, self.places = nn.Embedding(50, dim), nn.Parameter(torch.randn(length, dim))

    def forward(self, ids: Tensor) -> Tensor:
        return self.items(ids) + self.places.unsqueeze(0)


def test_a_parameter_whose_gradient_shares_the_memory_of_the_rows_gradient() -> None:
    torch.manual_seed(0)
    plain = Positions(3, 4)
    ours = convert(copy.deepcopy(plain))
    first, second = torch.optim.SGD(plain.parameters(), 0.1), optim.SGD(ours.parameters(), 0.1)
    draws = [(torch.randint(0, 50, (1, 3)), torch.randn(1, 3, 4)) for _ in range(30)]
    for i, (ids, factors) in enumerate(draws):
        for model, optimizer in ((plain, first), (ours, second)):
            (model(ids) * factors).sum().backward()
            if i % 3 == 2:  # passes add up and are clipped: both write into the parameter's gradient
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
    for key, value in plain.state_dict().items():
        assert distance(value, ours.state_dict()[key]) < 1e-6, key
