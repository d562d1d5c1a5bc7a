"""EmbeddingCollection against its plain twin; tables in files."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from slipstream import optim
from slipstream.embedding import (
    EmbeddingCollection,
    PlainEmbeddingCollection,
    TableConfig,
    mapped_table,
    memory,
    tables,
)
from slipstream.errors import ConfigError, IndexOutOfRange


class Bag(NamedTuple):
    values: Tensor
    offsets: Tensor


CONFIGS = [TableConfig("tag", 7, 4), TableConfig("user", 10, 4), TableConfig("item", 20, 4), TableConfig("word", 5, 4)]
IDS = torch.tensor([[1, 19], [1, 0], [9, 0]], dtype=torch.int32)
BAGS = [
    Bag(torch.tensor([6, 6, 0], dtype=torch.int32), torch.tensor([0, 2, 2, 3])),
    Bag(torch.tensor([], dtype=torch.int32), torch.tensor([0, 0, 0, 0])),
]


def both(pooling: str = "sum") -> tuple[EmbeddingCollection, PlainEmbeddingCollection]:
    ours = EmbeddingCollection(CONFIGS, multi_hot=["word", "tag"], pooling=pooling)
    plain = PlainEmbeddingCollection(CONFIGS, multi_hot=["word", "tag"], pooling=pooling, sparse=False)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_equals_its_plain_twin(pooling: str, dtype: torch.dtype) -> None:
    ours, plain = both(pooling)
    assert list(ours.state_dict()) == list(plain.state_dict()) == [f"tables.{c.name}.weight" for c in CONFIGS]
    bags = [Bag(bag.values.to(dtype), bag.offsets) for bag in BAGS]
    expected, found = plain(IDS.to(dtype), bags), ours(IDS.to(dtype), bags)
    assert found.shape == (3, 4, 4)
    torch.testing.assert_close(found, expected)
    grad = torch.randn(3, 4, 4)
    (expected * grad).sum().backward()
    (found * grad).sum().backward()
    for name, table in tables(ours).items():
        torch.testing.assert_close(table.weight.grad.to_dense(), plain.get_parameter(name).grad)


def test_order_is_one_hot_then_multi_hot() -> None:
    ours, _ = both()
    out = ours(IDS, BAGS)
    weights = {name: ours.table_of[name].weight for name in ours.table_of}
    assert torch.equal(out[:, 0], weights["user"][IDS[:, 0]]) and torch.equal(out[:, 1], weights["item"][IDS[:, 1]])
    assert torch.equal(out[0, 2], 2 * weights["tag"][6]) and (out[:, 3] == 0).all()


def test_only_one_hot_only_multi_hot_and_no_samples() -> None:
    one = EmbeddingCollection(CONFIGS[1:3])
    assert one(IDS).shape == (3, 2, 4) and one(IDS[:0]).shape == (0, 2, 4)
    bags = EmbeddingCollection(CONFIGS[:1], multi_hot=["tag"])
    assert bags(torch.zeros(3, 0, dtype=torch.int32), BAGS[:1]).shape == (3, 1, 4)
    ours, _ = both()
    empty = Bag(torch.zeros(0, dtype=torch.int32), torch.zeros(1, dtype=torch.long))
    out = ours(IDS[:0], [empty, empty])
    assert out.shape == (0, 4, 4)
    out.sum().backward()


def test_gradients_reach_only_trained_tables() -> None:
    ours, _ = both()
    ours.tables["user"].weight.requires_grad_(False)
    ours(IDS, BAGS).sum().backward()
    assert ours.tables["user"].weight.grad is None and ours.tables["item"].weight.grad is not None


@pytest.mark.parametrize(
    "ids, bags",
    [
        (IDS[:, :1], BAGS),
        (IDS, BAGS[:1]),
        (IDS[0], BAGS),
        (IDS, [BAGS[0], Bag(torch.tensor([1]), torch.tensor([0, 1]))]),
        (IDS[:2], BAGS),
    ],
    ids=["columns", "bags", "dimensions", "bags of other sizes", "ids of another size"],
)
def test_inputs_that_do_not_fit_the_tables_raise(ids: Tensor, bags: list[Bag]) -> None:
    with pytest.raises(ConfigError):
        both()[0](ids, bags)


def test_bags_whose_offsets_do_not_end_with_their_values_use_their_own_values_only() -> None:
    ours, plain = both()
    bags = [
        Bag(torch.tensor([6, 6, 0]), torch.tensor([0, 1, 1, 3])),
        Bag(torch.tensor([4, 1]), torch.tensor([0, 1, 2, 2])),
    ]
    torch.testing.assert_close(ours(IDS, bags), plain(IDS, bags))


def test_ids_outside_a_table_raise() -> None:
    ours, _ = both()
    with pytest.raises(IndexOutOfRange):
        ours(torch.tensor([[10, 0]] * 3), BAGS)
    with pytest.raises(IndexOutOfRange):
        ours(IDS, [Bag(torch.tensor([7]), torch.tensor([0, 1, 1, 1])), BAGS[1]])


@pytest.mark.parametrize(
    "configs, multi_hot",
    [
        ([], ()),
        ([TableConfig("a", 5, 4), TableConfig("a", 5, 4)], ()),
        ([TableConfig("a", 5, 4)], ("b",)),
        ([TableConfig("a", 0, 4)], ()),
        ([TableConfig("a.b", 5, 4)], ()),
        ([TableConfig("", 5, 4)], ()),
        ([TableConfig("a", 5, 0)], ()),
        ([TableConfig("a", 5, 4), TableConfig("b", 5, 8)], ()),
    ],
)
def test_tables_that_make_no_sense_raise(configs: list[TableConfig], multi_hot: tuple[str, ...]) -> None:
    for kind in (EmbeddingCollection, PlainEmbeddingCollection):
        with pytest.raises(ConfigError):
            kind(configs, multi_hot=multi_hot)


def test_initialisation() -> None:
    configs = [TableConfig("a", 400, 16), TableConfig("b", 400, 16, "normal", 0.5)]
    collection = EmbeddingCollection(configs)
    uniform, normal = collection.tables["a"].weight, collection.tables["b"].weight
    assert 0.045 < float(uniform.detach().abs().max()) <= 0.05
    assert abs(float(normal.detach().std()) - 0.5) < 0.02


@pytest.mark.parametrize("kind", [EmbeddingCollection, PlainEmbeddingCollection])
def test_tables_may_be_named_like_attributes_of_a_module(kind: type[EmbeddingCollection]) -> None:
    names = ["type", "type_", "items", "training", "float", "weight", "0", "__init__", "_", "plain_"]
    collection = kind([TableConfig(name, 5, 4) for name in names], multi_hot=["items"])
    keys = list(collection.state_dict())
    assert len(set(keys)) == len(names) == len(collection.tables) and list(collection.tables) == names
    assert {"tables.type_.weight", "tables.weight.weight", "tables.plain_.weight", "tables._.weight"} <= set(keys)
    for key in keys:
        assert collection.get_parameter(key).shape == (5, 4)
    other = copy.deepcopy(collection).train().eval().to(torch.float64).float()
    ids = torch.arange(2 * (len(names) - 1)).reshape(2, -1) % 5
    bags = [Bag(torch.tensor([1, 4]), torch.tensor([0, 2, 2]))]
    assert torch.equal(other(ids, bags), collection(ids, bags))
    other.load_state_dict(kind(collection.configs, multi_hot=["items"]).state_dict())
    assert not torch.equal(other(ids, bags), collection(ids, bags))
    other(ids, bags).sum().backward()
    for name in names:
        assert other.tables[name].weight.grad is not None and collection.tables[name].weight.grad is None


def test_copies_and_saved_collections_are_independent() -> None:
    ours, _ = both()
    ours.table_of["user"].open_gate()[1] = 0
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for other in (copy.deepcopy(ours), torch.load(file, weights_only=False)):
        assert torch.equal(other(IDS, BAGS), ours(IDS, BAGS))
        other(IDS, BAGS).sum().backward()
        for name, table in other.table_of.items():
            assert table.weight is other.tables[name].weight and table.weight.grad is not None
            assert ours.tables[name].weight.grad is None
        assert other.table_of["user"].gate is not ours.table_of["user"].gate


def test_load_state_dict_with_assign_keeps_training() -> None:
    ours, _ = both()
    ours.load_state_dict({key: torch.ones_like(value) for key, value in ours.state_dict().items()}, assign=True)
    ours(IDS, BAGS).sum().backward()
    for name, table in ours.table_of.items():
        assert table.weight is ours.tables[name].weight and table.weight.grad is not None


def test_a_table_in_a_file_is_trained_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "item.f32"
    collection = EmbeddingCollection(CONFIGS[1:3], weights={"item": mapped_table(path, 20, 4)})
    optimizer = optim.SGD(collection.parameters(), 1.0)
    collection(IDS).sum().backward()
    optimizer.step()
    again = mapped_table(path, 20, 4)
    assert torch.equal(again, collection.tables["item"].weight)
    assert (again[19] == -1).all() and (again[0] == -2).all() and (again[1] == 0).all()
    with pytest.raises(ConfigError, match="bytes"):
        mapped_table(path, 21, 4)
    with pytest.raises(ConfigError, match="shape"):
        EmbeddingCollection(CONFIGS[1:2], weights={"user": again})


def test_only_tables_beyond_memory_are_read_page_by_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advised: list[bool] = []
    monkeypatch.setattr(memory, "advise_read_around", lambda table, wanted: (advised.append(wanted), table)[1])
    assert memory.installed_memory() > 20 * 4 * 4
    mapped_table(tmp_path / "small", 20, 4)
    assert advised == []
    monkeypatch.setattr(memory, "installed_memory", lambda: 100)
    mapped_table(tmp_path / "large", 20, 4)
    mapped_table(tmp_path / "small", 20, 4, read_around=False)
    mapped_table(tmp_path / "large", 20, 4, read_around=True)
    assert advised == [False, False]


def test_advice_changes_no_number(tmp_path: Path) -> None:
    table = mapped_table(tmp_path / "table", 5000, 4)
    table.copy_(torch.arange(20_000.0).view(5000, 4))
    for wanted in (False, True):
        memory.advise_read_around(table, wanted)
        assert torch.equal(table, torch.arange(20_000.0).view(5000, 4))
