"""Whoever waits for a table's gradient where none arrives is told so, and not left to train something else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from slipstream import distributed, optim
from slipstream.embedding import Embedding, EmbeddingBag, EmbeddingCollection, TableConfig
from slipstream.errors import UnsupportedOption
from slipstream.export import to_plain

IDS = torch.tensor([[1, 2], [3, 1]])
MAKE: list[Callable[[], nn.Module]] = [
    lambda: Embedding(5, 4),
    lambda: EmbeddingBag(5, 4, mode="sum"),
    lambda: EmbeddingCollection([TableConfig("a", 5, 4), TableConfig("b", 5, 4)]),
]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda module: parametrizations.weight_norm(module, "weight"),
        lambda module: prune.random_unstructured(module, "weight", 0.5),
        lambda module: nn.utils.spectral_norm(module, "weight"),
    ],
    ids=["weight_norm", "prune", "spectral_norm"],
)
def test_a_weight_that_is_computed(change: Callable[[nn.Module], object], compiled: bool) -> None:
    module = Embedding(5, 4)
    change(module)
    torch.compiler.reset()
    look_up = torch.compile(module, backend="aot_eager") if compiled else module
    with pytest.raises(UnsupportedOption, match="not its parameter"):
        look_up(IDS)
    with torch.no_grad():
        assert torch.equal(look_up(IDS), module.weight[IDS])


@pytest.mark.parametrize("make", MAKE)
def test_weights_put_there_by_functional_call(make: Callable[[], nn.Module]) -> None:
    module = make()
    others = {name: torch.rand_like(p, requires_grad=True) for name, p in module.named_parameters()}

    def loss(others: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, others, (IDS,)).sum()

    for call in (loss, torch.func.grad(loss)):
        with pytest.raises(UnsupportedOption, match="functional_call"):
            call(others)
    with torch.no_grad():
        assert loss(others) != loss(dict(module.named_parameters()))  # predictions with other weights are no problem


def test_transforms_of_torch_func() -> None:
    module = Embedding(5, 4)
    of_factor = torch.func.jacrev(lambda factor: (module(IDS[0]) * factor).sum())
    for transform, argument in ((torch.func.vmap(module), IDS), (of_factor, torch.ones(2, 4))):
        with pytest.raises(UnsupportedOption, match="to_plain"):
            transform(argument)


@pytest.mark.parametrize("hook", ["register_hook", "register_post_accumulate_grad_hook"])
@pytest.mark.parametrize("make", MAKE)
def test_hooks_for_a_weights_gradient(make: Callable[[], nn.Module], hook: str) -> None:
    module = make()
    weight = next(module.parameters())
    handle = getattr(weight, hook)(lambda _: None)
    with pytest.raises(UnsupportedOption, match="has a hook"):
        module(IDS).sum().backward()
    assert weight.grad is None
    handle.remove()
    module(IDS).sum().backward()
    assert weight.grad is not None


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("compiled", [False, True])
def test_tables_that_distributed_data_parallel_is_to_average(compiled: bool) -> None:
    torch.compiler.reset()
    model = nn.Sequential(Embedding(5, 4), nn.Linear(4, 1))
    inner = torch.compile(model, backend="aot_eager") if compiled else model
    with pytest.raises(UnsupportedOption, match=r"data_parallel\(model\)"):
        DistributedDataParallel(inner, find_unused_parameters=True)(IDS)
    model[0].weight.requires_grad_(False)
    frozen = DistributedDataParallel(inner)
    frozen(IDS).sum().backward()
    model[0].weight.requires_grad_()
    exchanged = distributed.data_parallel(model)
    exchanged(IDS).sum().backward()
    assert model[0].weight.grad is not None


def penalised(module: nn.Module, top: nn.Module, *, rows_alone: bool, ids: Tensor, **more: Tensor) -> None:
    """A step's backward pass with a penalty on the norm of gradients: of looked-up rows, or of all parameters."""
    rows = module(ids, **more)
    loss = top(rows).tanh().square().sum()
    if rows_alone:
        (of_rows,) = torch.autograd.grad(loss, rows, create_graph=True)
        (loss + of_rows.norm() ** 2).backward()
        return
    loss.backward(create_graph=True)
    sum(p.grad.norm() ** 2 for p in (*module.parameters(), *top.parameters())).backward()


@pytest.mark.parametrize("factors", [False, True], ids=["plain", "sample_weights"])
def test_a_penalty_on_the_gradients_of_tables(factors: bool) -> None:
    """Factors that want a gradient have the lookup go by the operator."""
    module, top = EmbeddingBag(5, 4, mode="sum"), nn.Linear(4, 3)
    more = {"per_sample_weights": torch.rand(2, 2, requires_grad=True)} if factors else {}
    with pytest.raises(UnsupportedOption, match=r"create_graph=True.*to_plain"):
        penalised(module, top, rows_alone=False, ids=IDS, **more)
    assert module.weight.grad is None
    module.weight.requires_grad_(False)  # nothing is lost where no table is trained
    top(module(IDS)).square().sum().backward(create_graph=True)
    penalised(to_plain(Embedding(5, 4)), top, rows_alone=False, ids=IDS)  # the remedy


def test_a_penalty_on_the_gradients_of_looked_up_rows_equals_torch() -> None:
    ours, top = Embedding(5, 4), nn.Linear(4, 3)
    theirs, twin = to_plain(ours), copy.deepcopy(top)
    penalised(ours, top, rows_alone=True, ids=IDS)
    penalised(theirs, twin, rows_alone=True, ids=IDS)
    torch.testing.assert_close(ours.weight.grad.to_dense(), theirs.weight.grad)
    for parameter, other in zip(top.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


def test_the_graph_of_gradients_that_are_constant_or_of_the_dense_part() -> None:
    module, top = Embedding(5, 4), nn.Linear(4, 1)
    module(IDS).sum().backward(create_graph=True)
    assert torch.equal(module.weight.grad.to_dense(), torch.tensor([0.0, 2, 1, 1, 0]).unsqueeze(1).expand(5, 4))
    module.weight.grad = None
    (of_weight,) = torch.autograd.grad(top(module(IDS)).square().sum(), top.weight, create_graph=True)
    of_weight.square().sum().backward()
    assert module.weight.grad is not None


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_run_backward_without_a_graph(reentrant: bool) -> None:
    module, top = Embedding(5, 4), nn.Linear(4, 1)
    shift = torch.zeros(4, requires_grad=True)
    with torch.enable_grad():
        checkpoint(lambda by: top(module(IDS) + by).square().sum(), shift, use_reentrant=reentrant).backward()
    assert module.weight.grad is not None


def test_a_weight_whose_parametrization_was_removed_is_trained() -> None:
    module = Embedding(5, 4)
    parametrizations.weight_norm(module, "weight")
    nn.utils.parametrize.remove_parametrizations(module, "weight")
    module(IDS).sum().backward()
    assert module.weight.grad is not None and module.weight is module.site.tables[0].weight


def test_what_was_concatenated_with_looked_up_rows_may_be_clipped() -> None:
    ours, theirs = Embedding(50, 64), nn.Embedding(50, 64)
    theirs.load_state_dict(ours.state_dict())
    ids, more = torch.arange(50).repeat(8), torch.randn(8, 64)
    updated: list[Tensor] = []
    for module, make in ((ours, optim.SGD), (theirs, torch.optim.SGD)):
        also = nn.Parameter(more.clone())
        optimizer = make([*module.parameters(), also], lr=0.1)
        torch.cat([module(ids), also]).square().sum().backward()
        nn.utils.clip_grad_norm_([also], 0.1)
        optimizer.step()
        updated.append(module.weight.detach())
    torch.testing.assert_close(*updated)
