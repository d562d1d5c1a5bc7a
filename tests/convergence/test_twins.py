"""200 steps of a model with our modules and optimizers equal the same model with torch's."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from tests.convergence.models import Model, batches, distance, losses, twins
from torch import Tensor

from slipstream import optim

CLOSE = 1e-6
"""Relative: to the loss, and to the norm of each weight and state."""
CLOSE_MOMENTUM = 2e-6
"""The same of a sum of gradients in float32, which is 1.03e-6 off on processors without AVX-512."""

pytestmark = pytest.mark.filterwarnings("ignore::slipstream.kernels.parallel.SlowPathWarning")

Optimizers = Sequence[torch.optim.Optimizer]


@dataclass(frozen=True)
class Pair:
    """What torch does, and what we say does the same."""

    plain: Callable[[Model], Optimizers]
    ours: Callable[[Model], torch.optim.Optimizer]
    sparse: bool = False


def lazy_adam(model: Model) -> Optimizers:
    return [torch.optim.SparseAdam(model.tables(), 0.01), torch.optim.Adam(model.dense(), 0.01)]


PAIRS = {
    "sgd": Pair(lambda m: [torch.optim.SGD(m.parameters(), 2.0)], lambda m: optim.SGD(m.parameters(), 2.0)),
    "adagrad": Pair(
        lambda m: [torch.optim.Adagrad(m.parameters(), 0.05, lr_decay=0.01, initial_accumulator_value=1e-3)],
        lambda m: optim.Adagrad(m.parameters(), 0.05, lr_decay=0.01, initial_accumulator_value=1e-3),
    ),
    "adam-lazy": Pair(lazy_adam, lambda m: optim.Adam(m.parameters(), 0.01), sparse=True),
    "adam-dense": Pair(
        lambda m: [torch.optim.Adam(m.parameters(), 0.01, weight_decay=1e-4)],
        lambda m: optim.Adam(m.parameters(), 0.01, weight_decay=1e-4, untouched="dense"),
    ),
    "adamw-dense": Pair(
        lambda m: [torch.optim.AdamW(m.parameters(), 0.01, weight_decay=0.1)],
        lambda m: optim.AdamW(m.parameters(), 0.01, weight_decay=0.1, untouched="dense"),
    ),
    "sgd-momentum-dense": Pair(
        lambda m: [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=0.01)],
        lambda m: optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=0.01, untouched="dense"),
    ),
}


def backward(model: Model, data: Sequence, several: bool) -> list[float]:
    """Backward of one joint loss, or of two losses one after the other."""
    parts = losses(model, data)
    if several:
        parts[0].backward(retain_graph=True)
        parts[1].backward()
    else:
        sum(parts).backward()
    return [float(part.detach()) for part in parts]


def states(optimizers: Optimizers, model: Model) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                found[f"{name}.{key}"] = torch.as_tensor(float(value)) if key == "step" else value
    return found


def saved(*parts: object) -> list:
    """State dictionaries through a file and back, loaded as data only."""
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("passes, several", [(1, False), (2, True)], ids=["one-pass", "two-passes-two-losses"])
@pytest.mark.parametrize("name", PAIRS)
def test_twins_stay_together(name: str, passes: int, several: bool) -> None:
    pair = PAIRS[name]
    plain, ours = twins(pair.sparse)
    before = copy.deepcopy(ours.state_dict())
    plain_optimizers, optimizer = pair.plain(plain), pair.ours(ours)
    feed = batches(200 * passes)
    for step in range(200):
        if step == 90:  # save, and go on in a new model with a new optimizer
            model_state, optimizer_state = saved(ours, optimizer)
            ours = twins(pair.sparse)[1]
            ours.load_state_dict(model_state)
            optimizer = pair.ours(ours)
            optimizer.load_state_dict(optimizer_state)
        for each in (*plain_optimizers, optimizer):
            each.zero_grad()
        for _ in range(passes):
            data = next(feed)
            for expected, found in zip(backward(plain, data, several), backward(ours, data, several), strict=True):
                assert found == pytest.approx(expected, rel=CLOSE), f"loss at step {step}"
        for each in (*plain_optimizers, optimizer):
            each.step()
    for key, value in plain.state_dict().items():
        assert distance(value, ours.state_dict()[key]) <= CLOSE, key
        assert distance(before[key], value) > 0.02, f"{key} has hardly moved: the test shows nothing"
    expected_states, found_states = states(plain_optimizers, plain), states([optimizer], ours)
    expected_states = {key: value for key, value in expected_states.items() if value is not None}
    assert expected_states.keys() - found_states.keys() == set()
    for key, value in expected_states.items():
        close = CLOSE_MOMENTUM if key.endswith("momentum_buffer") else CLOSE
        assert distance(value, found_states[key]) <= close, key


def test_reload_is_bit_equal() -> None:
    def run(reload: bool) -> dict[str, Tensor]:
        _, model = twins()
        optimizer = optim.Adam(model.parameters(), 0.01, on_skip="catch_up")
        for step, data in enumerate(batches(20)):
            if reload and step == 10:
                model_state, optimizer_state = saved(model, optimizer)
                _, model = twins()
                model.load_state_dict(model_state)
                optimizer = optim.Adam(model.parameters(), 0.01, on_skip="catch_up")
                optimizer.load_state_dict(optimizer_state)
            optimizer.zero_grad()
            backward(model, data, False)
            optimizer.step()
        return model.state_dict() | states([optimizer], model)

    straight, reloaded = run(False), run(True)
    assert straight.keys() == reloaded.keys()
    for key, value in straight.items():
        assert torch.equal(value, reloaded[key]) and value.dtype == reloaded[key].dtype, key


@pytest.mark.parametrize("name", PAIRS)
def test_twins_in_float64_are_equal_to_rounding(name: str) -> None:
    """In float64 what is left of a difference is only rounding, so a small wrong term cannot hide."""
    pair = PAIRS[name]
    plain, ours = twins(pair.sparse, torch.float64)
    plain_optimizers, optimizer = pair.plain(plain), pair.ours(ours)
    for data in batches(60, dtype=torch.float64):
        for each in (*plain_optimizers, optimizer):
            each.zero_grad()
        backward(plain, data, True)
        backward(ours, data, True)
        for each in (*plain_optimizers, optimizer):
            each.step()
    for key, value in plain.state_dict().items():
        assert distance(value, ours.state_dict()[key]) <= 1e-12, key


def test_rowwise_adagrad_equals_its_definition() -> None:
    plain, ours = twins()
    optimizer = optim.RowwiseAdagrad(ours.parameters(), 0.05, eps=1e-8, initial_accumulator_value=0.1)
    dense = torch.optim.Adagrad(plain.dense(), 0.05, eps=1e-8, initial_accumulator_value=0.1)
    sums = [torch.full((len(weight),), 0.1) for weight in plain.tables()]
    for step, data in enumerate(batches(200)):
        plain.zero_grad()
        ours.zero_grad()
        for expected, found in zip(backward(plain, data, False), backward(ours, data, False), strict=True):
            assert found == pytest.approx(expected, rel=CLOSE), f"loss at step {step}"
        dense.step()
        optimizer.step()
        with torch.no_grad():
            for weight, total in zip(plain.tables(), sums, strict=True):
                total += weight.grad.square().mean(dim=1)
                weight -= 0.05 * weight.grad / (total.sqrt() + 1e-8).unsqueeze(1)
    for mine, weight, total in zip(ours.tables(), plain.tables(), sums, strict=True):
        assert distance(weight.detach(), mine.detach()) <= CLOSE
        assert distance(total, optimizer.state[mine]["row_sum"]) <= CLOSE


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_catch_up_equals_its_definition(kind: str) -> None:
    """Before a row's update its moments and decay make up for the steps that it missed; nothing else happens to it."""
    plain, ours = twins()
    lr, beta1, beta2, eps, decay = 0.01, 0.9, 0.99, 1e-8, 0.1 if kind == "adamw" else 0.0
    if kind == "sgd":
        optimizer: torch.optim.Optimizer = optim.SGD(ours.parameters(), lr, beta1, on_skip="catch_up")
        dense: torch.optim.Optimizer = torch.optim.SGD(plain.dense(), lr, beta1)
    else:
        ours_of, torch_of = (optim.Adam, torch.optim.Adam) if kind == "adam" else (optim.AdamW, torch.optim.AdamW)
        optimizer = ours_of(ours.parameters(), lr, (beta1, beta2), eps, decay, on_skip="catch_up")
        dense = torch_of(plain.dense(), lr, (beta1, beta2), eps, decay)
    weights = plain.tables()
    first, second = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    last = [torch.zeros(len(w)) for w in weights]
    for step, data in enumerate(batches(200), start=1):
        plain.zero_grad()
        ours.zero_grad()
        for expected, found in zip(backward(plain, data, False), backward(ours, data, False), strict=True):
            assert found == pytest.approx(expected, rel=CLOSE), f"loss at step {step}"
        dense.step()
        optimizer.step()
        touched = [data[0].unique(), data[1].unique(), data[2].unique()]
        touched[0] = touched[0][touched[0] != 3]  # padding
        with torch.no_grad():
            for w, m, v, seen, rows in zip(weights, first, second, last, touched, strict=True):
                grad, missed = w.grad[rows], (step - 1 - seen[rows]).unsqueeze(1)
                seen[rows] = step
                if kind == "sgd":
                    m[rows] = beta1 ** (missed + 1) * m[rows] + grad
                    w[rows] -= lr * m[rows]
                    continue
                w[rows] *= ((1 - lr * decay) ** (missed.double() + 1)).to(w.dtype)
                m[rows] = beta1 ** (missed + 1) * m[rows] + (1 - beta1) * grad
                v[rows] = beta2 ** (missed + 1) * v[rows] + (1 - beta2) * grad.square()
                size = lr * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
                w[rows] -= size * m[rows] / (v[rows].sqrt() + eps)
    for mine, weight, seen in zip(ours.tables(), weights, last, strict=True):
        assert distance(weight.detach(), mine.detach()) <= CLOSE
        assert torch.equal(optimizer.state[mine]["last_step"].float(), seen)
