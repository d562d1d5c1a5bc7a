"""convert, check and tables: nested containers, tied weights, what is left alone, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from slipstream.embedding import Embedding, EmbeddingBag, Finding, RowGradient, check, convert, tables
from slipstream.errors import UnsupportedOption


class Sub(nn.Embedding):
    """A subclass with a forward of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sequence = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4))
        self.items = nn.ModuleList([nn.Embedding(7, 4, padding_idx=0), nn.EmbeddingBag(6, 4, mode="sum")])
        self.named = nn.ModuleDict({"deep": nn.ModuleDict({"er": nn.Embedding(5, 4, sparse=True)})})
        self.again = self.items[0]  # one module under two names
        self.tied = nn.Embedding(10, 4)
        self.tied.weight = self.sequence[0].weight
        self.sub = Sub(3, 4)
        self.nothing = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        small = ids % 3
        return (
            self.sequence(ids)
            + self.items[0](small)
            + self.items[1](small.unsqueeze(1))
            + self.named["deep"]["er"](small)
            + self.again(small)
            + self.tied(ids)
            + self.sub(small)
        )


def test_nested_containers_tied_weights_and_second_names() -> None:
    plain = Nested()
    before = copy.deepcopy(plain)
    parameters = dict(plain.named_parameters())
    model = convert(plain)
    assert model is plain
    assert list(model.state_dict()) == list(before.state_dict())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.state_dict().items())
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert type(model.sequence[0]) is Embedding and type(model.items[1]) is EmbeddingBag
    assert type(model.named["deep"]["er"]) is Embedding and type(model.sub) is Sub
    assert model.again is model.items[0]
    assert model.tied.weight is model.sequence[0].weight and model.tied.table is model.sequence[0].table
    assert model.items[0].padding_idx == 0 and model.items[1].mode == "sum"

    ids = torch.tensor([0, 9, 9, 4])
    torch.testing.assert_close(model(ids), before(ids))
    model(ids).square().sum().backward()
    before(ids).square().sum().backward()
    for name, parameter in before.named_parameters():
        found = dict(model.named_parameters())[name].grad
        found = found.to_dense() if hasattr(found, "to_dense") else found
        expected = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        torch.testing.assert_close(found, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_tables_by_parameter_name() -> None:
    found = tables(convert(Nested()))
    assert list(found) == ["sequence.0.weight", "items.0.weight", "items.1.weight", "named.deep.er.weight"]
    assert [table.name for table in found.values()] == list(found)


def test_converting_twice_changes_nothing() -> None:
    model = convert(Nested())
    modules = dict(model.named_modules())
    assert dict(convert(model).named_modules()) == modules


def test_tying_to_a_table_converted_before() -> None:
    model = convert(nn.ModuleDict({"a": nn.Embedding(10, 4)}))
    model["b"] = nn.Embedding(10, 4)
    model["b"].weight = model["a"].weight
    convert(model)
    assert model["a"].table is model["b"].table


def test_a_model_that_is_an_embedding_itself() -> None:
    plain = nn.Embedding(10, 4)
    model = convert(plain)
    assert type(model) is Embedding and model is plain


def test_hooks_and_mode_and_frozen_weights_are_kept() -> None:
    model = nn.Sequential(nn.Embedding(10, 4))
    called = []
    model[0].register_forward_hook(lambda *_: called.append(1))
    model[0].weight.requires_grad_(False)
    model.eval()
    convert(model)
    assert not model(torch.tensor([1])).requires_grad and called == [1] and not model[0].training


class Holding(nn.Module):
    """Modules that it looks rows up in are found in a dictionary, a tuple and a bound method, none of them torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item, self.tag = nn.Embedding(10, 4), nn.Embedding(7, 4), Kept(5, 4)
        self.by_name, self.in_order, self.doubled = {"user": self.user}, (self.item,), self.tag.doubled

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.by_name["user"](ids) + self.in_order[0](ids) + self.doubled(ids)


class Kept(nn.Embedding):
    """A subclass with a method."""

    def doubled(self, ids: torch.Tensor) -> torch.Tensor:
        return self(ids) * 2


def test_whatever_holds_a_module_has_the_converted_one() -> None:
    plain = Holding()
    before, held = copy.deepcopy(plain), plain.by_name["user"]
    model = convert(plain)
    assert model.user is held and type(held) is Embedding and model.by_name["user"] is held
    ids = torch.tensor([1, 4, 4])
    torch.testing.assert_close(model(ids), before(ids))
    for one in (model, before):
        one(ids).square().sum().backward()
    for parameter, other in zip(model.parameters(), before.parameters(), strict=True):
        assert type(parameter.grad) is RowGradient
        torch.testing.assert_close(parameter.grad.to_dense(), other.grad)


def test_a_module_of_two_models_is_converted_in_both() -> None:
    rows = nn.Embedding(10, 4)
    one, other = nn.Sequential(rows), nn.ModuleDict({"rows": rows})
    convert(one)
    assert other["rows"] is one[0] and type(other["rows"]) is Embedding


def test_hooks_that_know_their_module_find_it() -> None:
    model, seen = nn.Sequential(nn.Embedding(10, 4)), []
    rows = model[0]
    rows.register_load_state_dict_pre_hook(lambda module, *_: seen.append(module))
    rows.register_load_state_dict_post_hook(lambda module, _: seen.append(module))
    rows.register_state_dict_post_hook(lambda module, *_: seen.append(module))
    convert(model)
    model.load_state_dict(model.state_dict())
    assert seen == [model[0]] * 3


def test_a_compiled_modules_copy_and_its_attributes_in_slots_stay() -> None:
    class Slotted(nn.Embedding):
        __slots__ = ("note",)

    model = nn.Sequential(Slotted(10, 4))
    model[0].note = "kept"
    model[0].compile(backend="eager")
    convert(model)
    assert model[0].note == "kept" and type(copy.deepcopy(model)[0]) is type(model[0])
    model[0](torch.tensor([1, 2])).sum().backward()
    assert type(model[0].weight.grad) is RowGradient


class Unsupported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.good = nn.Embedding(5, 3)
        self.block = nn.ModuleDict({"bad": nn.Embedding(5, 3, max_norm=1.0), "top": nn.EmbeddingBag(5, 3, mode="max")})
        self.other = Sub(5, 3)


def test_check_names_modules_and_severity() -> None:
    findings = check(Unsupported())
    assert [(finding.module, finding.severity) for finding in findings] == [
        ("block.bad", "error"),
        ("block.top", "error"),
        ("other", "note"),
    ]
    assert all(isinstance(finding, Finding) for finding in findings)
    assert "max_norm" in findings[0].problem and "max" in findings[1].problem and "Sub" in findings[2].problem
    assert check(nn.Linear(2, 2)) == [] and check(convert(nn.Sequential(nn.Embedding(5, 3)))) == []
    assert check(nn.Embedding(5, 3, max_norm=1.0))[0].module


def test_convert_refuses_with_all_names_and_leaves_the_model_whole() -> None:
    model = Unsupported()
    with pytest.raises(UnsupportedOption, match=r"block\.bad.*block\.top"):
        convert(model)
    assert type(model.good) is nn.Embedding


class Closed(nn.Embedding):
    def __setattr__(self, name: str, value: object) -> None:
        if name == "site":
            raise AttributeError("closed to site")
        super().__setattr__(name, value)


def test_a_module_that_cannot_take_ours_is_left_as_it_was() -> None:
    model = nn.ModuleDict({"closed": Closed(4, 2)})
    for _ in range(2):
        with pytest.raises(UnsupportedOption, match=r"cannot convert a Closed: .*closed to site"):
            convert(model)
        assert type(model["closed"]) is Closed and model["closed"](torch.tensor([1])).shape == (1, 2)


def test_convert_without_strict_leaves_what_it_cannot() -> None:
    model = convert(Unsupported(), strict=False)
    assert type(model.good) is Embedding
    assert type(model.block["bad"]) is nn.Embedding and type(model.block["top"]) is nn.EmbeddingBag


def test_a_refused_module_under_two_names_is_left_under_both() -> None:
    model = Unsupported()
    model.second = model.block["bad"]
    convert(model, strict=False)
    assert type(model.second) is nn.Embedding and model.second is model.block["bad"]


def test_a_refused_model_that_is_an_embedding_itself_is_returned() -> None:
    plain = nn.Embedding(5, 3, max_norm=1.0)
    assert convert(plain, strict=False) is plain


class Named(nn.Embedding):
    """A subclass with an attribute of its own, of a name that our modules have."""

    def __init__(self, name: str) -> None:
        super().__init__(5, 3)
        setattr(self, name, "avazu")


@pytest.mark.parametrize("name", ["site", "table", "out_dtype"])
def test_a_module_with_attributes_of_our_names_is_left_and_reported(name: str) -> None:
    model = nn.ModuleDict({"named": Named(name), "plain": nn.Embedding(5, 3)})
    (finding,) = check(model)
    assert (finding.module, finding.severity) == ("named", "note") and name in finding.problem
    convert(model)
    assert type(model["named"]) is Named and getattr(model["named"], name) == "avazu"
    assert type(model["plain"]) is Embedding


def test_a_module_whose_forward_was_replaced_is_left_and_reported() -> None:
    model = nn.Sequential(nn.Embedding(5, 3))
    model[0].forward = lambda ids, look_up=model[0].forward: look_up(ids) * 2  # as Accelerate adds its hooks
    (finding,) = check(model)
    assert finding.severity == "note" and "forward" in finding.problem
    convert(model)
    assert type(model[0]) is nn.Embedding
