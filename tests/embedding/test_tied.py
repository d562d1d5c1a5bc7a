"""A weight has one table: shared by models, untied and tied again, put on another device."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from slipstream import Skipper, optim
from slipstream.data import Columns
from slipstream.embedding import Embedding, EmbeddingBag, EmbeddingCollection, TableConfig, convert, tables
from slipstream.errors import UnsupportedOption
from slipstream.policies import PSSE

IDS = torch.arange(6)


def two() -> tuple[nn.Module, nn.Module]:
    module = nn.Embedding(6, 4)
    return convert(nn.Sequential(module)), convert(nn.Sequential(module))


def two_tied_before() -> tuple[nn.Module, nn.Module]:
    one, other = nn.Sequential(nn.Embedding(6, 4)), nn.Sequential(nn.Embedding(6, 4))
    other[0].weight = one[0].weight
    return convert(one), convert(other)


def a_collections() -> tuple[nn.Module, nn.Module]:
    collection = EmbeddingCollection([TableConfig("a", 6, 4)])
    module = nn.Embedding(6, 4)
    module.weight = collection.tables["a"].weight
    return collection, convert(nn.Sequential(module))


@pytest.mark.parametrize("make", [two, two_tied_before, a_collections])
def test_a_weight_in_two_models_has_one_table(make: Callable[[], tuple[nn.Module, nn.Module]]) -> None:
    one, other = make()
    (mine,), (theirs,) = tables(one).values(), tables(other).values()
    assert mine is theirs
    mine.open_gate().fill_(0)
    before = mine.weight.clone()
    (one(IDS.view(6, 1)).reshape(6, 4) * other(IDS)).sum().backward()
    optim.SGD(one.parameters(), 0.1).step()
    assert torch.equal(mine.weight, before) and mine.skipped == 12


def test_the_copy_of_a_model_has_a_table_of_its_own() -> None:
    one, other = two()
    copied = copy.deepcopy(other)
    assert copied[0].table is not one[0].table and copied[0].table.weight is copied[0].weight


def test_a_gradient_of_another_table_of_the_same_weight_is_refused() -> None:
    one, other = Embedding(6, 4), Embedding(6, 4)
    other._parameters["weight"] = other.table.weight = one.weight  # past what follows a weight
    one(IDS).sum().backward()
    with pytest.raises(UnsupportedOption, match="another table that has the same weight"):
        other(IDS).sum().backward()


def test_tying_once_more_changes_nothing() -> None:
    model = convert(nn.ModuleDict({"a": nn.Embedding(6, 4), "b": nn.Embedding(6, 4)}))
    for _ in range(2):
        model["b"].weight = model["a"].weight
    assert model["a"].table is model["b"].table


class Tied(nn.Module):
    """Logits of users and items that share a table of 100 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(100, 4), nn.Embedding(100, 4)
        self.b.weight = self.a.weight

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return (self.a(users) * self.b(items)).sum(1)


def skipped(after: Callable[[Tied], None]) -> float:
    """Share of row updates that a policy skips, if this is done to its model before the first step."""
    torch.manual_seed(0)
    model = convert(Tied())
    skipper = Skipper(model, PSSE(budget=0.5, warmup_steps=5, every=5), to_batch=Columns(ids=["a", "b"], label="y"))
    after(model)
    optimizer = optim.SGD(model.parameters(), 0.1)
    ids = (torch.rand(30, 2, 32, generator=torch.Generator().manual_seed(1)) ** 3 * 100).long()
    for batch in skipper([{"a": a, "b": b, "y": torch.ones(32)} for a, b in ids]):
        optimizer.zero_grad()
        model(batch.carried["a"], batch.carried["b"]).square().sum().backward()
        optimizer.step()
    assert model.a.table is model.b.table
    return skipper.share_of_row_updates_skipped


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_policy_goes_on_with_weights_that_were_assigned_and_tied_again(name: str) -> None:
    def assign(model: Tied) -> None:
        model.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}, assign=True)
        assert model.a.table is not model.b.table
        weight = (model.b if name == "a" else model.a).weight
        getattr(model, name).weight = weight
        assert model.a.table.weight is model.b.weight is weight

    assert skipped(assign) == skipped(lambda _: None) > 0.3


def test_an_untied_table_has_a_gate_of_its_own() -> None:
    model = convert(Tied())
    model.a.table.open_gate()[3] = 0
    model.a.weight = nn.Parameter(torch.ones(100, 4))
    assert model.a.table.gate is not model.b.table.gate and torch.equal(model.a.table.gate, model.b.table.gate)
    model.a.weight = model.b.weight
    model.b.table.listeners.append(lambda table, ids: None)  # its gates are a policy's, which will not know the other
    model.a.weight = nn.Parameter(torch.ones(100, 4))
    assert model.a.table.gate is None and model.a.table.listeners == []


@pytest.mark.parametrize("kept_vars", [False, True])
def test_a_collections_tables_may_be_tied(kept_vars: bool) -> None:
    one, other = (EmbeddingCollection([TableConfig("a", 6, 4), TableConfig("b", 6, 4)]) for _ in range(2))
    if kept_vars:
        other.load_state_dict(one.state_dict(keep_vars=True), assign=True)
        assert other.table_of == one.table_of
    ids = IDS.view(3, 2)
    one.gather(["a", "b"], ids)
    one.tables["b"].weight = one.tables["a"].weight
    (table,) = tables(one).values()
    table.open_gate().fill_(0)
    before = table.weight.clone()
    (one(ids) * one.gather(["b", "a"], ids)).sum().backward()
    optim.SGD(one.parameters(), 0.1).step()
    assert torch.equal(table.weight, before) and table.skipped == 12


MADE: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "embedding": (lambda: Embedding(6, 4), (IDS,)),
    "bag-weighted": (lambda: EmbeddingBag(6, 4, mode="sum"), (IDS.view(3, 2), None, torch.ones(3, 2))),
    "collection": (lambda: EmbeddingCollection([TableConfig("a", 6, 4), TableConfig("b", 6, 4)]), (IDS.view(3, 2),)),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("case", MADE)
def test_weights_assigned_to_a_module_on_the_meta_device(case: str, compiled: bool) -> None:
    torch.compiler.reset()
    make, inputs = MADE[case]
    with torch.device("meta"):
        module = make()
    for table in tables(module).values():
        table.open_gate()
    module.load_state_dict({name: torch.ones(6, 4) for name in module.state_dict()}, assign=True)
    inputs = tuple(i.requires_grad_() if i is not None and i.is_floating_point() else i for i in inputs)
    (torch.compile(module, backend="aot_eager") if compiled else module)(*inputs).sum().backward()
    for table in tables(module).values():
        assert table.gate is None and table.weight.grad.to_dense().sum() > 0


def test_what_is_kept_of_rows_is_moved_and_nothing_else() -> None:
    module = Embedding(6, 4)
    module.table.open_gate()[3] = 7
    module.table.measure()[3] = 300
    module.table.open_trail()[3] = 0.1
    module.type(torch.float64).to_empty(device="cpu")
    table = module.table
    assert table.gate.dtype == torch.uint8 and table.gate.tolist() == [255, 255, 255, 7, 255, 255]
    assert table.signal.dtype == torch.uint16 and table.signal[3] == 300
    assert table.trail.dtype == torch.float32 and table.trail[3, 0] == torch.tensor(0.1)
    module.to("meta").to_empty(device="cpu")
    assert table.gate is None and table.signal is None and table.trail is None
