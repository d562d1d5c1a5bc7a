"""Our optimizers as torch optimizers: groups, rates, closures, schedulers, hooks, state."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.convergence.models import Model, batches, distance, losses, twins
from torch import Tensor, nn
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import register_optimizer_step_post_hook

from slipstream import optim
from slipstream.embedding import Embedding, RowGradient, convert, tables
from slipstream.errors import ConfigError, SlipstreamError, UnsupportedOption

pytestmark = pytest.mark.filterwarnings("ignore::slipstream.kernels.parallel.SlowPathWarning")

ALL = [optim.SGD, optim.Adagrad, optim.RowwiseAdagrad, optim.Adam, optim.AdamW]


def step(model: Model, optimizer: torch.optim.Optimizer, data: tuple) -> float:
    optimizer.zero_grad()
    loss = sum(losses(model, data))
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def one_table() -> tuple[Embedding, Tensor]:
    """A table of ones, and ids that touch rows 1 (twice) and 4."""
    table = Embedding(6, 3)
    nn.init.ones_(table.weight)
    return table, torch.tensor([1, 4, 1])


def test_parameter_groups_have_rates_of_their_own() -> None:
    plain, ours = twins()
    groups = optim.parameter_groups(ours, lr=0.1, embedding_lr=0.3)
    assert [(group["lr"], group["tables"]) for group in groups] == [(0.1, False), (0.3, True)]
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in ours.tables()}
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in ours.dense()}
    # The rule for torch's modules is the same one.
    assert {id(p) for p in optim.table_parameters(plain)} == {id(p) for p in plain.tables()}
    assert optim.parameter_groups(nn.Linear(2, 1), 0.1)[0]["lr"] == 0.1
    assert optim.parameter_groups(ours, 0.1)[1]["lr"] == 0.1
    assert optim.parameter_groups(ours, 0.1, 0.0)[1]["lr"] == 0.0

    optimizer = optim.SGD(groups, 0.0)
    twin = torch.optim.SGD([{"params": plain.dense(), "lr": 0.1}, {"params": plain.tables(), "lr": 0.3}], 0.0)
    for data in batches(10):
        step(plain, twin, data)
        step(ours, optimizer, data)
    for key, value in plain.state_dict().items():
        assert distance(value, ours.state_dict()[key]) < 1e-6, key


def test_tables_in_several_groups_each_with_its_settings() -> None:
    plain, ours = twins()

    def groups(model: Model) -> list[dict]:
        return [
            {"params": [model.items.weight], "lr": 0.5},
            {"params": [model.users.weight, *model.dense()], "lr": 0.1, "weight_decay": 0.0},
            {"params": [model.tags.weight], "lr": 0.01},
        ]

    optimizer, twin = optim.Adagrad(groups(ours)), torch.optim.Adagrad(groups(plain))
    for data in batches(10):
        step(plain, twin, data)
        step(ours, optimizer, data)
    for key, value in plain.state_dict().items():
        assert distance(value, ours.state_dict()[key]) < 1e-6, key


@pytest.mark.parametrize("kind", ALL)
def test_a_rate_in_a_tensor_is_read_at_every_step(kind: type[torch.optim.Optimizer]) -> None:
    results = []
    for make in (float, torch.tensor):
        _, ours = twins()
        optimizer = kind(ours.parameters(), lr=make(0.1))
        for i, data in enumerate(batches(6)):
            if i == 3:
                if make is float:
                    optimizer.param_groups[0]["lr"] = 0.01
                else:
                    optimizer.param_groups[0]["lr"].fill_(0.01)
            step(ours, optimizer, data)
        results.append(ours.state_dict())
    for key, value in results[0].items():
        assert distance(value, results[1][key]) < 1e-6, key


@pytest.mark.parametrize("kind", ALL)
def test_closures(kind: type[torch.optim.Optimizer]) -> None:
    _, one = twins()
    other = copy.deepcopy(one)
    first, second = kind(one.parameters(), lr=0.1), kind(other.parameters(), lr=0.1)
    for data in batches(3):
        expected = step(one, first, data)

        def closure(data: tuple = data) -> Tensor:
            second.zero_grad()
            loss = sum(losses(other, data))
            loss.backward()
            return loss

        with torch.no_grad():
            assert float(second.step(closure)) == expected
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], object]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.5**t),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.5),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 1, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 2], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.25, 1.0, 3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=8),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.5), lr_scheduler.ConstantLR(o, 0.5, 2)], o
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 1), lr_scheduler.ExponentialLR(o, 0.5)], [1]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.01, 2),
}


def test_every_scheduler_of_torch_is_listed() -> None:
    base = {"LRScheduler", "_LRScheduler"}
    found = {
        name
        for name, kind in vars(lr_scheduler).items()
        if isinstance(kind, type) and (issubclass(kind, lr_scheduler.LRScheduler) or name == "ReduceLROnPlateau")
    }
    assert found - base - SCHEDULERS.keys() == set()


@pytest.mark.filterwarnings("error:Detected call of:UserWarning")  # torch thinks that step() came in the wrong order
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_change_the_rate_of_rows(name: str) -> None:
    """With plain SGD a row moves by rate times gradient, so what it moves shows the rate that was used."""
    table, ids = one_table()
    optimizer = optim.SGD(table.parameters(), lr=0.1, momentum=0.5 if name == "OneCycleLR" else 0.0)
    scheduler = SCHEDULERS[name](optimizer)
    rates, momentum = [], torch.zeros(3)
    for _ in range(5):
        before = table.weight.detach().clone()
        optimizer.zero_grad()
        table(ids).sum().backward()
        rate = float(optimizer.param_groups[0]["lr"])
        momentum = momentum * optimizer.param_groups[0]["momentum"] + 2.0
        optimizer.step()
        moved = before - table.weight.detach()
        torch.testing.assert_close(moved[1], rate * momentum, rtol=1e-5, atol=1e-6)
        assert (moved[[0, 2, 3, 5]] == 0).all()
        rates.append(rate)
        scheduler.step(1.0) if name == "ReduceLROnPlateau" else scheduler.step()
    assert len(set(rates)) > 1


@pytest.mark.parametrize("kind", ALL)
def test_hooks_run_once_a_step(kind: type[torch.optim.Optimizer]) -> None:
    _, ours = twins()
    optimizer = kind(ours.parameters(), lr=0.1)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    for data in batches(2):
        step(ours, optimizer, data)
    assert calls == ["pre", "post"] * 2


def test_hooks_of_all_optimizers_and_the_label_for_torchs_profiler() -> None:
    _, ours = twins()
    optimizer = optim.Adam(ours.parameters(), lr=0.1)
    calls: list[Any] = []
    handle = register_optimizer_step_post_hook(lambda stepped, *_: calls.append(stepped))
    step(ours, optimizer, next(iter(batches(1))))
    handle.remove()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(ours, optimizer, next(iter(batches(1))))
    assert calls == [optimizer]
    assert "Optimizer.step#Adam.step" in {event.key for event in profile.key_averages()}


def test_what_others_put_around_torchs_methods_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def watched(kind: type[torch.optim.Optimizer], name: str) -> None:
        inner = getattr(kind, name)

        @functools.wraps(inner)
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return inner(*arguments, **options)

        monkeypatch.setattr(kind, name, call)

    for name in ("add_param_group", "state_dict", "load_state_dict"):
        watched(torch.optim.Optimizer, name)
    watched(torch.optim.SGD, "step")
    _, ours = twins()
    optimizer = optim.SGD(ours.parameters(), lr=0.1)
    step(ours, optimizer, next(batches(1)))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["add_param_group", "step", "state_dict", "load_state_dict"]


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_zero_grad_leaves_nothing_behind(kind: type[torch.optim.Optimizer], set_to_none: bool) -> None:
    _, one = twins()
    other = copy.deepcopy(one)
    first, second = kind(one.parameters(), lr=0.1), kind(other.parameters(), lr=0.1)
    for data in batches(3):
        step(one, first, data)
        sum(losses(other, data)).backward()
        second.zero_grad(set_to_none=set_to_none)
        sum(losses(other, data)).backward()
        second.step()
        second.zero_grad(set_to_none=set_to_none)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_gradients_are_still_there_after_the_step() -> None:
    table, ids = one_table()
    optimizer = optim.SGD(table.parameters(), lr=0.1)
    table(ids).sum().backward()
    optimizer.step()
    assert table.weight.grad.to_dense()[1].tolist() == [2.0] * 3
    optimizer.step()  # as torch's: nobody has zeroed it
    torch.testing.assert_close(table.weight[1].detach(), torch.full((3,), 0.6))


def test_a_step_without_gradients_changes_nothing() -> None:
    _, ours = twins()
    before = copy.deepcopy(ours.state_dict())
    optimizer = optim.Adam(ours.parameters(), lr=0.1)
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())
    assert not optimizer.state


@pytest.mark.parametrize("kind", ALL)
def test_state_round_trip(kind: type[torch.optim.Optimizer]) -> None:
    _, ours = twins()
    optimizer = kind(ours.parameters(), lr=0.1, on_skip="catch_up")
    for data in batches(3):
        step(ours, optimizer, data)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = kind(ours.parameters(), lr=0.7)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.param_groups[0]["lr"] == 0.1 and other.param_groups[0]["on_skip"] == "catch_up"
    for parameter in ours.parameters():
        one, two = optimizer.state[parameter], other.state[parameter]
        assert one.keys() == two.keys()
        for key, value in one.items():
            if isinstance(value, Tensor):
                assert torch.equal(value, two[key]) and value.dtype == two[key].dtype, key
                assert key == "step" or value.data_ptr() != two[key].data_ptr()
            else:
                assert value == two[key]


def test_state_is_loaded_in_the_middle_of_a_run() -> None:
    """What the optimizer prepared for the kernel must follow the new state."""
    _, ours = twins()
    optimizer = optim.Adam(ours.parameters(), lr=0.1)
    data = list(batches(4))
    for each in data[:2]:
        step(ours, optimizer, each)
    model_state, optimizer_state = copy.deepcopy((ours.state_dict(), optimizer.state_dict()))
    results = []
    for _ in range(2):
        for each in data[2:]:
            step(ours, optimizer, each)
        results.append(copy.deepcopy(ours.state_dict()))
        ours.load_state_dict(model_state)
        optimizer.load_state_dict(optimizer_state)
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


@pytest.mark.parametrize(
    ("kind", "name", "state"),
    [
        (optim.Adam, "exp_avg", torch.zeros(10)),  # one number a row: right for row-wise Adagrad alone
        (optim.Adam, "exp_avg_sq", torch.zeros(4, 10)),
        (optim.Adam, "exp_avg", "text"),
        (optim.Adagrad, "sum", torch.zeros(10)),
        (optim.RowwiseAdagrad, "row_sum", torch.zeros(10, 4)),
        (functools.partial(optim.SGD, momentum=0.9), "momentum_buffer", torch.zeros(10)),
        (functools.partial(optim.Adam, on_skip="catch_up"), "last_step", torch.zeros(3, dtype=torch.int32)),
    ],
)
def test_a_state_that_the_rule_cannot_use_is_refused_before_the_kernel_reads_it(kind, name, state) -> None:
    table = Embedding(10, 4)
    optimizer = kind(table.parameters(), lr=0.1)
    table(torch.arange(10)).sum().backward()
    optimizer.step()
    optimizer.state[table.weight][name] = state
    with pytest.raises(UnsupportedOption, match=f"{name} of table .* not of shape"):
        optimizer.step()


@pytest.mark.parametrize(
    "kind", [optim.Adam, optim.Adagrad, optim.RowwiseAdagrad, functools.partial(optim.SGD, momentum=0.9)]
)
def test_a_state_that_is_none_is_not_there_yet(kind) -> None:
    """As torch's SGD has it before its first step; the kernel would read at address 0."""
    weights = []
    for spoil in (False, True):
        table = Embedding.from_pretrained(torch.ones(10, 4), freeze=False)
        optimizer = kind(table.parameters(), lr=0.1)
        if spoil:
            optimizer.state[table.weight] = dict.fromkeys((*optimizer.row_state, "step"))
        table(torch.arange(10)).sum().backward()
        optimizer.step()
        weights.append(table.weight.detach().clone())
    assert weights[0].equal(weights[1])


def test_state_replaced_by_hand_is_started_anew() -> None:
    table, ids = one_table()
    optimizer = optim.Adam(table.parameters(), lr=0.1)

    def once() -> Tensor:
        optimizer.zero_grad()
        nn.init.ones_(table.weight)
        table(ids).sum().backward()
        optimizer.step()
        return table.weight.detach().clone()

    first = once()
    once()
    optimizer.state.clear()
    assert torch.equal(once(), first)
    assert optimizer.state[table.weight]["step"] == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state, weight: state.pop(weight),
        lambda state, weight: state[weight].clear(),
        lambda state, weight: state[weight].update(exp_avg=torch.zeros_like(weight)),
        lambda state, weight: state[weight].update(exp_avg_sq=torch.ones_like(weight)),
    ],
)
def test_state_of_one_table_replaced_by_hand_is_honoured_as_torch_does(spoil: Callable[..., object]) -> None:
    torch.manual_seed(0)
    plain = nn.ModuleList(nn.Embedding(6, 3) for _ in range(3))
    ours = convert(copy.deepcopy(plain))
    found = []
    for model, optimizer in (
        (plain, torch.optim.Adam(plain.parameters(), lr=0.1)),
        (ours, optim.Adam(ours.parameters(), lr=0.1)),
    ):
        for i in range(6):
            if i == 3:
                spoil(optimizer.state, model[1].weight)
            optimizer.zero_grad()
            sum(table(torch.arange(6)).sub(5).square().sum() for table in model).backward()
            optimizer.step()
        found.append([optimizer.state[table.weight] for table in model])
    for one, other in zip(plain, ours, strict=True):
        assert distance(one.weight.detach(), other.weight.detach()) < 1e-6
    for one, other in zip(*found, strict=True):
        assert int(one["step"]) == int(other["step"])
        torch.testing.assert_close(other["exp_avg"], one["exp_avg"])


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind is not optim.RowwiseAdagrad])
def test_torchs_state_goes_on_in_ours_and_ours_in_torchs(kind: type[optim.SGD]) -> None:
    """Every row is touched, so that lazy and dense are the same."""
    options = {"lr": 0.1} | ({"momentum": 0.9} if kind is optim.SGD else {})
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 2))
    reference = copy.deepcopy(model)
    theirs = kind.dense_optimizer
    optimizer, unbroken = theirs(model.parameters(), **options), theirs(reference.parameters(), **options)
    for next_kind in (kind, theirs, kind):
        for _ in range(4):
            for each, its in ((model, optimizer), (reference, unbroken)):
                its.zero_grad()
                each(torch.arange(6)).square().sum().backward()
                its.step()
        for one, other in zip(reference.parameters(), model.parameters(), strict=True):
            assert distance(one.detach(), other.detach()) < 1e-6
        state = optimizer.state_dict()
        model = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 2))
        model = convert(model) if next_kind is kind else model
        model.load_state_dict(copy.deepcopy(reference.state_dict()))
        optimizer = next_kind(model.parameters(), **options)
        optimizer.load_state_dict(state)


def test_a_gradient_given_to_another_parameter_is_refused() -> None:
    """As asynchronous workers hand theirs to a shared model: it would update the worker's table."""
    worker, ids = one_table()
    shared = copy.deepcopy(worker)
    optimizer = optim.SGD(shared.parameters(), lr=0.1)
    worker(ids).sum().backward()
    shared.weight.grad = worker.weight.grad
    with pytest.raises(UnsupportedOption, match="given to another parameter"):
        optimizer.step()
    shared.weight.grad = worker.weight.grad.to_dense()
    optimizer.step()
    assert bool((worker.weight == 1).all()) and bool((shared.weight[1] != 1).all())


def test_momentum_and_seed_changed_in_the_middle_are_honoured() -> None:
    table, ids = one_table()
    optimizer = optim.SGD(table.parameters(), lr=0.1)
    for momentum in (0.0, 0.9):
        optimizer.param_groups[0]["momentum"] = momentum
        for _ in range(2):
            optimizer.zero_grad()
            table(ids).sum().backward()
            optimizer.step()
    # Gradient 2 at rate 0.1 three times, and once more with the momentum of the third.
    torch.testing.assert_close(table.weight[1].detach(), torch.full((3,), 1.0 - 0.1 * (2 + 2 + 2 + (2 + 0.9 * 2))))


@pytest.mark.parametrize("kind", ALL)
def test_catch_up_switched_on_in_the_middle_keeps_the_state(kind: type[torch.optim.Optimizer]) -> None:
    results = []
    for switch in (False, True):
        table, ids = one_table()
        optimizer = kind(table.parameters(), lr=0.1)
        for turn in range(4):
            if switch and turn == 2:
                optimizer.param_groups[0]["on_skip"] = "catch_up"
            optimizer.zero_grad()
            table(ids).square().sum().backward()
            optimizer.step()
        results.append(table.weight.detach())
    # Every row was touched in every step or never, so there is nothing to catch up.
    assert torch.equal(results[0], results[1])
    assert optimizer.state[table.weight]["last_step"].tolist() == [2, 4, 2, 2, 4, 2]


@pytest.mark.parametrize("kind", ALL)
def test_catch_up_switched_off_is_off(kind: type[torch.optim.Optimizer]) -> None:
    results = []
    for switch in (False, True):
        table, ids = one_table()
        optimizer = kind(table.parameters(), lr=0.1, on_skip="catch_up" if switch else "freeze")
        for turn in range(6):
            if switch and turn == 1:
                optimizer.param_groups[0]["on_skip"] = "freeze"
            optimizer.zero_grad()
            table(ids if turn in (0, 5) else ids[:1]).square().sum().backward()
            optimizer.step()
        results.append(table.weight.detach())
    assert torch.equal(results[0], results[1]) and "last_step" not in optimizer.state[table.weight]


def test_weights_replaced_in_the_middle_are_followed() -> None:
    table, ids = one_table()
    optimizer = optim.Adagrad(table.parameters(), lr=0.1)
    table(ids).sum().backward()
    optimizer.step()
    old = table.weight.data
    before = old.clone()
    table.weight.data = torch.zeros(6, 3)
    optimizer.step()
    assert torch.equal(old, before) and (table.weight[1] < 0).all()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad, torch.optim.RMSprop])
def test_torchs_optimizers_raise_a_typed_error(kind: type[torch.optim.Optimizer]) -> None:
    _, ours = twins()
    optimizer = kind(ours.tables(), lr=0.1)
    sum(losses(ours, next(batches(1)))).backward()
    with pytest.raises(SlipstreamError, match=r"slipstream\.optim"):
        optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.Adam(p, amsgrad=True),
        lambda p: optim.Adam(p, maximize=True),
        lambda p: optim.SGD(p, 0.1, 0.9, nesterov=True),
        lambda p: optim.SGD(p, 0.1, 0.9, dampening=0.5),
    ],
)
def test_options_that_rows_cannot_have_raise_and_change_nothing(make) -> None:
    table, ids = one_table()
    head = nn.Linear(3, 1)
    optimizer = make([*table.parameters(), *head.parameters()])
    head(table(ids)).sum().backward()
    before = head.weight.detach().clone()
    with pytest.raises(UnsupportedOption):
        optimizer.step()
    assert (table.weight == 1).all() and torch.equal(head.weight, before)
    assert table.weight.grad is not None and len(optimizer.param_groups[0]["params"]) == 3


def test_a_failed_step_leaves_the_optimizer_whole() -> None:
    table, ids = one_table()
    head = nn.Linear(3, 1)
    optimizer = optim.Adam([*table.parameters(), *head.parameters()])
    optimizer.param_groups[0]["amsgrad"] = True
    head(table(ids)).sum().backward()
    with pytest.raises(UnsupportedOption):
        optimizer.step()
    optimizer.param_groups[0]["amsgrad"] = False
    optimizer.step()
    assert (table.weight[1] != 1).all()


@pytest.mark.parametrize("kind", ALL)
def test_wrong_options_raise(kind: type[torch.optim.Optimizer]) -> None:
    parameters = [nn.Parameter(torch.zeros(1))]
    for wrong in ({"untouched": "eager"}, {"on_skip": "forget"}):
        with pytest.raises(ConfigError):
            kind(parameters, lr=0.1, **wrong)
        with pytest.raises(ConfigError):
            kind([{"params": parameters, **wrong}], lr=0.1)
    with pytest.raises(ValueError, match="-1"):
        kind(parameters, lr=-1.0)


@pytest.mark.parametrize("kind", ALL)
def test_dense_parameters_alone_equal_torchs(kind: type[torch.optim.Optimizer]) -> None:
    theirs = torch.optim.Adagrad if kind is optim.RowwiseAdagrad else getattr(torch.optim, kind.__name__)
    torch.manual_seed(0)
    one = nn.Linear(4, 2)
    other = copy.deepcopy(one)
    first, second = theirs(one.parameters(), lr=0.1), kind(other.parameters(), lr=0.1)
    for _ in range(5):
        for model, optimizer in ((one, first), (other, second)):
            optimizer.zero_grad()
            model(torch.ones(3, 4)).square().sum().backward()
            optimizer.step()
    assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)


def test_a_tied_output_layer_equals_torch() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(12, 4)
            self.out = nn.Linear(4, 12)
            self.out.weight = self.rows.weight

        def forward(self, ids: Tensor) -> Tensor:
            return nn.functional.cross_entropy(self.out(self.rows(ids)), ids.roll(1))

    torch.manual_seed(0)
    plain = Tied()
    ours = convert(copy.deepcopy(plain))
    for kind, theirs in ((optim.SGD, torch.optim.SGD), (optim.Adam, torch.optim.Adam)):
        first, second = theirs(plain.parameters(), lr=0.1), kind(ours.parameters(), lr=0.1)
        for seed in range(10):
            ids = torch.randint(0, 12, (6,), generator=torch.Generator().manual_seed(seed))
            for model, optimizer in ((plain, first), (ours, second)):
                optimizer.zero_grad()
                model(ids).backward()
                optimizer.step()
        for key, value in plain.state_dict().items():
            assert distance(value, ours.state_dict()[key]) < 1e-5, key


@pytest.mark.parametrize("on_skip", ["freeze", "catch_up"])
@pytest.mark.parametrize("kind", ALL)
def test_tables_missing_from_some_steps_keep_their_own_state(kind: type[torch.optim.Optimizer], on_skip: str) -> None:
    torch.manual_seed(0)
    a, b = Embedding(5, 3), Embedding(5, 3)
    optimizer = kind([a.weight, b.weight], lr=0.1, on_skip=on_skip)
    alone, ids = copy.deepcopy(b), torch.tensor([1, 1, 3])
    only = kind([alone.weight], lr=0.1, on_skip=on_skip)
    for turn in range(6):
        optimizer.zero_grad()
        only.zero_grad()
        loss = a(ids).square().sum()
        if turn % 2:
            loss = loss + b(ids).square().sum()
            alone(ids).square().sum().backward()
            only.step()
        loss.backward()
        optimizer.step()
    assert torch.equal(alone.weight, b.weight)
    assert (optimizer.state[a.weight]["step"], optimizer.state[b.weight]["step"]) == (6, 3)


def test_deepcopied_and_pickled_optimizers_work() -> None:
    _, ours = twins()
    optimizer = optim.Adam(ours.parameters(), lr=0.1)
    data = list(batches(3))
    step(ours, optimizer, data[0])
    model, copied = copy.deepcopy((ours, optimizer))
    step(model, copied, data[1])
    step(ours, optimizer, data[1])
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), model.parameters(), strict=True))
    assert all(name in tables(model) for name in tables(ours))


def test_an_optimizer_without_a_rule_for_rows_cannot_be_made() -> None:
    class NoRule(optim.optimizers.RowStep, torch.optim.SGD):
        dense_optimizer = torch.optim.SGD

    with pytest.raises(TypeError, match=r"abstract method '?_settings"):
        NoRule([nn.Parameter(torch.zeros(1))], lr=0.1)


OF_ROWS = [
    (optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (optim.Adagrad, torch.optim.Adagrad, {"lr": 0.1}),
    (optim.Adam, torch.optim.Adam, {"lr": 0.1}),
    (optim.AdamW, torch.optim.AdamW, {"lr": 0.1}),
]


@pytest.mark.parametrize(("ours", "torchs", "options"), OF_ROWS, ids=[ours.__name__ for ours, _, _ in OF_ROWS])
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_dense_gradient_between_those_of_lookups(ours, torchs, options, by_hand: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Embedding(6, 3)
    mine = convert(copy.deepcopy(plain))
    for model, optimizer in (
        (plain, torchs(plain.parameters(), **options)),
        (mine, ours(mine.parameters(), **options)),
    ):
        for number in range(5):
            optimizer.zero_grad()
            loss = model(torch.arange(6)).pow(2).sum() if by_hand or number % 2 == 0 else model.weight.pow(2).sum()
            loss.backward()
            if by_hand and number % 2 and isinstance(model.weight.grad, RowGradient):
                model.weight.grad = model.weight.grad.to_dense()
            optimizer.step()
    torch.testing.assert_close(mine.weight, plain.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [(torch.optim.AdamW, optim.AdamW), (torch.optim.SGD, optim.SGD)], ids=["AdamW", "SGD"])
@pytest.mark.parametrize("switch", [False, True])
def test_catch_up_with_dense_gradients_between_those_of_lookups(kind, switch: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Embedding(6, 4)
    mine = convert(copy.deepcopy(plain))
    options = {"lr": 0.1} if kind[0] is torch.optim.AdamW else {"lr": 0.1, "momentum": 0.9}
    ours = kind[1](mine.parameters(), on_skip="catch_up", **options)
    for model, optimizer in ((plain, kind[0](plain.parameters(), **options)), (mine, ours)):
        for number in range(9):
            dense = number % 3 == 1
            if switch and optimizer is ours:
                ours.param_groups[0]["untouched"] = "dense" if dense else "lazy"
            optimizer.zero_grad()
            loss = model(torch.arange(6)).pow(2).sum()
            (loss if switch or not dense else loss + model.weight.pow(2).sum()).backward()
            optimizer.step()
    torch.testing.assert_close(mine.weight, plain.weight, rtol=1e-5, atol=1e-6)


def test_a_dense_gradient_finds_all_rows_caught_up() -> None:
    # Row 1 waits for three steps; its moments and decay have gone on as those of a row with gradients of 0 would.
    table = Embedding(2, 4)
    start = table.weight.detach().clone()
    optimizer = optim.AdamW(table.parameters(), lr=0.1, weight_decay=0.5, on_skip="catch_up")
    for ids in ([0, 1], [0], [0], [0]):
        optimizer.zero_grad()
        table(torch.tensor(ids)).sum().backward()
        optimizer.step()
    moment = optimizer.state[table.weight]["exp_avg"][1].clone()
    before = table.weight[1].detach().clone()
    optimizer.zero_grad()
    table.weight.grad = torch.zeros(2, 4)
    optimizer.step()
    state = optimizer.state[table.weight]
    torch.testing.assert_close(state["exp_avg"][1], moment * 0.9**4)
    assert state["last_step"].tolist() == [5, 5] and int(state["step"]) == 5
    moved = before * (1 - 0.1 * 0.5) ** 4
    assert not torch.equal(before, start[1])
    assert ((table.weight[1] - moved).abs() < 0.1).all()


def test_momentum_that_is_off_for_a_while_is_left_alone_as_by_torch() -> None:
    torch.manual_seed(0)
    plain = nn.Embedding(6, 4)
    mine = convert(copy.deepcopy(plain))
    for model, optimizer in (
        (plain, torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)),
        (mine, optim.SGD(mine.parameters(), lr=0.1, momentum=0.9)),
    ):
        for number in range(9):
            optimizer.param_groups[0]["momentum"] = 0.0 if number in (3, 4) else 0.9
            optimizer.zero_grad()
            model(torch.arange(6)).pow(2).sum().backward()
            optimizer.step()
    torch.testing.assert_close(mine.weight, plain.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_state_of_another_dtype_is_cast_as_by_torch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"table": nn.Embedding(6, 4), "head": nn.Linear(4, 1)}).to(dtype)
    torchs = torch.optim.Adam(model.parameters())
    model["head"](model["table"](torch.arange(6))).sum().backward()
    torchs.step()
    mine = convert(copy.deepcopy(model).float())
    ours = optim.Adam(mine.parameters())
    ours.load_state_dict(torchs.state_dict())
    for parameter in mine.parameters():
        assert ours.state[parameter]["exp_avg"].dtype == torch.float32
    ours.zero_grad()
    mine["head"](mine["table"](torch.arange(6))).sum().backward()
    ours.step()


def test_a_copy_of_an_optimizer_draws_gates_alike() -> None:
    optimizer = optim.SGD(Embedding(6, 3).parameters(), lr=0.1)
    optimizer.gate_seed = 7
    assert copy.deepcopy(optimizer).gate_seed == 7
    older = {name: value for name, value in optimizer.__getstate__().items() if name != "gate_seed"}
    other = optim.SGD(Embedding(6, 3).parameters(), lr=0.1)
    other.__setstate__(older)
    assert other.gate_seed == 0


def test_a_state_of_one_number_a_row_does_not_take_dense_gradients() -> None:
    table = Embedding(6, 3)
    optimizer = optim.RowwiseAdagrad(table.parameters(), lr=0.1)
    table(torch.arange(6)).sum().backward()
    optimizer.step()
    table.weight.grad = torch.ones(6, 3)
    with pytest.raises(UnsupportedOption, match="one number a row"):
        optimizer.step()


def test_what_is_refused_is_refused_before_anything_moves() -> None:
    model = nn.ModuleDict({"table": Embedding(6, 3), "head": nn.Linear(3, 1)})
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    weight = model["table"].weight
    optimizer.state[weight] = {"step": 1, "exp_avg": torch.zeros(2, 3), "exp_avg_sq": torch.zeros(6, 3)}
    model["head"](model["table"](torch.arange(6))).sum().backward()
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        with pytest.raises(UnsupportedOption, match="exp_avg of table"):
            optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert optimizer.state[weight]["step"] == 1
