"""torch.compile without a graph break, and the operators' own checks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.embedding.test_collection import Bag
from torch import Tensor, nn

from slipstream import optim
from slipstream.embedding import Embedding, EmbeddingBag, EmbeddingCollection, TableConfig, operators, tables
from slipstream.embedding.table import Site

IDS = torch.tensor([[1, 2, 1], [0, 9, 2]])
FLAT, OFFSETS = torch.tensor([1, 9, 2, 0, 2, 1]), torch.tensor([0, 3, 3])
FACTORS = torch.tensor([1.0, 0.5, -2.0, 0.0, 3.0, 1.0])


class Many(nn.Module):
    """A collection as models use it."""

    def __init__(self) -> None:
        super().__init__()
        configs = [TableConfig("user", 10, 4), TableConfig("item", 20, 4), TableConfig("tag", 10, 4)]
        self.tables = EmbeddingCollection(configs, multi_hot=["tag"])

    def forward(self, ids: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
        return self.tables(ids, [Bag(values, offsets)])


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "embedding": (lambda: Embedding(10, 4, padding_idx=2), (IDS,)),
    "bag": (lambda: EmbeddingBag(10, 4, mode="mean"), (FLAT, OFFSETS)),
    "bag-last-offset": (
        lambda: EmbeddingBag(10, 4, mode="sum", include_last_offset=True),
        (FLAT, torch.cat([OFFSETS, torch.tensor([6])])),
    ),
    "bag-matrix": (lambda: EmbeddingBag(10, 4, mode="sum"), (IDS,)),
    "bag-weighted": (lambda: EmbeddingBag(10, 4, mode="sum", padding_idx=2), (FLAT, OFFSETS, FACTORS)),
    "collection": (Many, (IDS[:, :2], FLAT, torch.tensor([0, 2, 6]))),
}


@pytest.mark.parametrize("case", CASES)
def test_no_graph_break_and_the_gradients_of_eager(case: str) -> None:
    torch.compiler.reset()
    make, inputs = CASES[case]
    torch.manual_seed(0)
    model = nn.ModuleDict({"rows": make(), "head": nn.Linear(4, 1)})
    factors = [value for value in inputs if value.is_floating_point()]

    def loss(*args: Tensor) -> Tensor:
        return model["head"](model["rows"](*args)).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found: list[list[Tensor]] = []
    for function in (loss, compiled, compiled):
        model.zero_grad()
        for factor in factors:
            factor.grad = None
            factor.requires_grad_()
        value = function(*inputs)
        value.backward()
        grads = [table.weight.grad.to_dense() for table in tables(model).values()]
        grads += [p.grad.clone() for p in model["head"].parameters()]
        found.append([value.detach(), *grads, *(factor.grad.clone() for factor in factors)])
    for factor in factors:
        factor.requires_grad_(False)
    assert len(found[0]) > 3
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_compiled_by_inductor_with_its_listeners() -> None:
    torch.compiler.reset()
    rows, head = Embedding(10, 4), nn.Linear(4, 1)
    compiled = torch.compile(lambda ids: torch.relu(head(rows(ids))).sum(), fullgraph=True)
    heard = []
    rows.table.listeners.append(lambda table, ids: heard.append(ids.numel()))
    for ids in (IDS, IDS[:1]):
        rows.zero_grad()
        compiled(ids).backward()
        expected = torch.zeros(10, 4)
        for row in ids.reshape(-1):
            if head(rows.weight[row]).item() > 0:
                expected[row] += head.weight[0].detach()
        torch.testing.assert_close(rows.weight.grad.to_dense(), expected)
    assert heard == [6, 3]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_lookups_that_are_alike_each_leave_their_gradient(backend: str) -> None:
    """Compilers merge equal calls, and here ids and gradients of both are equal."""
    torch.compiler.reset()
    rows = Embedding(10, 4)
    torch.compile(lambda ids: (rows(ids) + rows(ids)).sum(), fullgraph=True, backend=backend)(IDS).backward()
    assert float(rows.weight.grad.to_dense().sum()) == 2 * IDS.numel() * 4


def test_compiled_without_gradients() -> None:
    torch.compiler.reset()
    rows = Embedding(10, 4)
    compiled = torch.compile(rows, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(IDS), rows.weight[IDS])


def samples(weighted: bool) -> tuple:
    rows = EmbeddingBag(10, 4, mode="sum") if weighted else Embedding(10, 4)
    site: Site = rows.site
    site.keep = rows  # alive as long as the site
    weights = [rows.weight.detach()]
    if not weighted:
        return site, (site.token, weights, IDS[:, :1], None, None, site.handle, False, [2], torch.float32)
    offsets = torch.tensor([0, 3, 3, 6])
    factors = FACTORS.clone().requires_grad_()
    return site, (site.token, weights, FLAT, offsets, factors, site.handle, False, [2], torch.float32)


@pytest.mark.parametrize("weighted", [False, True])
def test_pool_passes_opcheck(weighted: bool) -> None:
    site, arguments = samples(weighted)
    # Not its comparison of gradients under AOT dispatch: what the tables receive is a side effect of backward.
    torch.library.opcheck(
        operators.pool, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
    )
    del site


@pytest.mark.parametrize("weighted", [False, True])
def test_row_gradients_pass_opcheck(weighted: bool) -> None:
    site, (_, _, ids, offsets, factors, handle, mean, padding, _) = samples(weighted)
    size = ids.shape[0] if offsets is None else len(offsets) - 1
    factors = None if factors is None else factors.detach()
    arguments = (torch.randn(size, 1, 4), ids, offsets, factors, handle, mean, padding, 0)
    torch.library.opcheck(operators.row_gradients, arguments, test_utils=("test_schema", "test_faketensor"))
    del site


def test_sample_weight_gradients_pass_opcheck() -> None:
    arguments = (torch.randn(3, 1, 4), [torch.randn(10, 4)], FLAT, torch.tensor([0, 3, 3, 6]), [2])
    torch.library.opcheck(operators.sample_weight_gradients, arguments)


def test_operator_and_short_way_agree() -> None:
    site, arguments = samples(False)
    weights, ids = arguments[1:3]
    short = operators.look_up(site, weights, ids, padding=[2])
    assert torch.equal(operators.pool(*arguments), short)


def test_a_compiled_training_step_leaves_the_optimizer_out_of_its_graphs() -> None:
    torch.compiler.reset()
    labels, found = torch.rand(3), []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(EmbeddingBag(10, 4, mode="sum"), nn.Linear(4, 1))
        optimizer = optim.Adam(model.parameters(), lr=0.1)

        def step(model: nn.Module = model, optimizer: optim.Adam = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = (model(IDS.T).squeeze(1) - labels).square().sum()
            loss.backward()
            optimizer.step()
            return loss.detach()

        run = torch.compile(step, backend="aot_eager") if compiled else step
        found.append(torch.stack([run() for _ in range(4)]))
    torch.testing.assert_close(found[1], found[0])
