"""Plain modules, safetensors, torch.export and ONNX of converted models predict as the model does."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import slipstream as sl
from slipstream.data import Bag, Inputs
from slipstream.data.schema import FeatureInfo
from slipstream.embedding import PlainEmbeddingCollection, TableConfig
from slipstream.errors import NotInstalled, UnsupportedOption
from slipstream.export import save_safetensors, to_onnx, to_plain, to_program
from slipstream.models import (
    MODELS,
    DCNv2Config,
    DeepFM,
    DeepFMConfig,
    DLRMConfig,
    MatrixFactorizationConfig,
    Recommender,
    TwoTowerConfig,
    build_model,
)
from slipstream.models.layers import DotInteraction

FEATURES = [("user", 20, False), ("item", 30, False), ("tag", 9, True)]


class Named(nn.Embedding):
    """A subclass without a forward."""


class Served(nn.Module):
    """Fields, a padded history, bags and tied tables, as other libraries build models."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(50, 8), Named(40, 8, padding_idx=0)
        self.linear = nn.Embedding(50, 1)
        self.tags = nn.EmbeddingBag(30, 8, mode="mean")
        self.again = nn.Embedding(40, 8, padding_idx=0)
        self.again.weight = self.item.weight
        self.top = nn.Sequential(nn.Linear(33, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, ids: Tensor, history: Tensor) -> Tensor:
        mean = self.again(history).mean(1)
        parts = [self.user(ids[:, 0]), self.item(ids[:, 1]), self.tags(history % 30), mean, self.linear(ids[:, 0])]
        return self.top(torch.cat(parts, dim=1)).squeeze(1)


def inputs(size: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(size)
    return torch.randint(0, 40, (size, 2), generator=random), torch.randint(0, 40, (size, 5), generator=random)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = sl.convert(Served())
    optimizer = sl.optim.Adam(model.parameters(), lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        model(*inputs(8 + step)).square().mean().backward()
        optimizer.step()
    return model  # its gradients are still there


def test_plain_modules_with_the_same_state(trained: nn.Module) -> None:
    gradient = trained.user.weight.grad
    plain = to_plain(trained)
    assert trained.user.weight.grad is gradient and isinstance(trained.user, sl.Embedding)
    kinds = [type(module) for module in (plain.user, plain.item, plain.tags, plain.again)]
    assert kinds == [nn.Embedding, Named, nn.EmbeddingBag, nn.Embedding]
    assert plain.again.weight is plain.item.weight and plain.item.weight is not trained.item.weight
    assert list(plain.state_dict()) == list(trained.state_dict())
    torch.testing.assert_close(plain(*inputs(6)), trained(*inputs(6)), rtol=0, atol=1e-6)
    plain(*inputs(6)).sum().backward()
    assert type(plain.user.weight.grad) is Tensor
    assert type(to_plain(sl.Embedding(3, 2))) is nn.Embedding
    linear = nn.Linear(2, 2)
    assert to_plain(linear) is not linear and to_plain(sl.convert(copy.deepcopy(plain))).state_dict().keys()


def test_our_models_too() -> None:
    features = [FeatureInfo(name=n, num_rows=r, multi_hot=m) for n, r, m in FEATURES]
    model = DeepFM(features, 2, DeepFMConfig(embedding_dim=4)).eval()
    plain = to_plain(model)
    bag = Bag(torch.tensor([1, 2, 8], dtype=torch.int32), torch.tensor([0, 2, 2, 3]))
    given = Inputs(torch.randn(3, 2), torch.tensor([[1, 2], [3, 4], [19, 29]], dtype=torch.int32), (bag,))
    assert list(plain.state_dict()) == list(model.state_dict()) and not plain.training
    assert not any(isinstance(module, sl.EmbeddingCollection) for module in plain.modules())
    torch.testing.assert_close(plain(given), model(given), rtol=0, atol=1e-6)


class Scaled(sl.Embedding):
    """A subclass of ours with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class ScaledCollection(sl.EmbeddingCollection):
    def forward(self, ids: Tensor, bags: object = ()) -> Tensor:
        return super().forward(ids) * 2


def replaced() -> nn.Module:
    module = sl.Embedding(5, 4)
    module.forward = lambda ids, look_up=module.forward: look_up(ids) * 2  # as Accelerate adds its hooks
    return module


@pytest.mark.parametrize("make", [lambda: Scaled(5, 4), lambda: ScaledCollection([TableConfig("a", 5, 4)]), replaced])
def test_lookups_that_a_subclass_changes_are_refused_by_name(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(UnsupportedOption, match=r"layers\.1 .*forward"):
        to_plain(nn.ModuleDict({"layers": nn.Sequential(nn.Linear(2, 2), make())}))
    linear = nn.Linear(2, 2)
    linear.forward = lambda x, product=linear.forward: product(x) * 2  # not ours: it stays as it is
    assert to_plain(linear)(torch.ones(1, 2)).shape == (1, 2)


class Mixed:
    def tripled(self, ids: Tensor) -> Tensor:
        return self(ids) * 3  # type: ignore[operator]


class OurBag(sl.EmbeddingBag, Mixed):
    """A subclass of ours that changes no lookup."""


class TheirBag(nn.EmbeddingBag, Mixed):
    """A subclass of torch's."""


def test_subclasses_that_change_no_lookup() -> None:
    ours = OurBag(5, 4, mode="sum")
    plain = to_plain(ours)
    assert type(plain) is nn.EmbeddingBag and torch.equal(plain(IDS), ours(IDS))
    converted = sl.convert(TheirBag(5, 4, mode="sum"))
    plain = to_plain(copy.deepcopy(converted))
    assert type(plain) is TheirBag and torch.equal(plain.tripled(IDS), converted.tripled(IDS))


IDS = torch.tensor([[1, 2], [3, 1]])


@pytest.mark.parametrize("make", [lambda: sl.Embedding(5, 4), lambda: sl.convert(Named(5, 4))])
def test_a_parametrized_table(make: Callable[[], nn.Module]) -> None:
    ours = make()
    kind = type(to_plain(ours))
    parametrizations.weight_norm(ours, "weight")
    plain = to_plain(ours)
    assert isinstance(plain, kind) and not isinstance(plain, sl.Embedding)
    plain(IDS).sum().backward()
    with torch.no_grad():
        assert torch.equal(plain(IDS), ours(IDS))
    parametrize.remove_parametrizations(plain, "weight")
    assert type(plain) is kind


def test_what_a_model_holds_and_hooks_are_of_the_copy() -> None:
    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(5, 4)
            self.by_name = {"rows": self.rows}

        def forward(self, ids: Tensor) -> Tensor:
            return self.by_name["rows"](ids)

    model, seen = sl.convert(Holding()), []
    model.rows.register_load_state_dict_pre_hook(lambda module, *_: seen.append(module))
    plain = to_plain(model)
    assert type(plain.by_name["rows"]) is nn.Embedding and plain.by_name["rows"] is plain.rows
    plain.load_state_dict(plain.state_dict())
    assert seen == [plain.rows]


def test_a_collection_keeps_hooks_and_what_was_added_to_it() -> None:
    tables = [TableConfig("user", 5, 4), TableConfig("tag", 6, 4)]
    ours = sl.EmbeddingCollection(tables, multi_hot=["tag"], pooling="mean")
    ours.register_forward_hook(lambda _, given, rows: rows * 10)
    ours.register_forward_pre_hook(lambda _, given: (given[0] * 0 + 1, *given[1:]))
    ours.note, ours.extra = "mine", nn.Linear(4, 1)
    plain = to_plain(ours)
    given = torch.tensor([[2], [3]]), [Bag(torch.tensor([1, 2, 5]), torch.tensor([0, 2, 3]))]
    torch.testing.assert_close(plain(*given), ours(*given))
    assert plain(*given).abs().max() > 1 and plain.note == "mine"
    assert list(plain.state_dict()) == list(ours.state_dict())
    made = PlainEmbeddingCollection(tables, multi_hot=["tag"], pooling="mean")
    assert set(vars(plain)) == {*vars(made), "note"}


def test_safetensors_are_read_by_the_plain_and_the_converted_model(trained: nn.Module, tmp_path: Path) -> None:
    path = save_safetensors(trained, tmp_path / "new" / "model.safetensors")
    for model in (Served(), sl.convert(Served())):
        load_model(model, path)
        torch.testing.assert_close(model(*inputs(6)), trained(*inputs(6)), rtol=0, atol=1e-6)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_program_of_the_plain_and_of_the_converted_model(trained: nn.Module, tmp_path: Path) -> None:
    program = to_program(trained, inputs(4))
    assert "slipstream" not in str(program.graph)
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    for size in (2, 7):
        with torch.no_grad():
            torch.testing.assert_close(again(*inputs(size)), trained(*inputs(size)), rtol=0, atol=1e-6)
    ours = torch.export.export(copy.deepcopy(trained).eval(), inputs(4))
    assert "slipstream" in str(ours.graph)
    with torch.no_grad():
        torch.testing.assert_close(ours.module()(*inputs(4)), trained(*inputs(4)), rtol=0, atol=1e-6)


def our_models() -> dict[str, Recommender]:
    torch.manual_seed(0)
    features = [FeatureInfo(name=n, num_rows=r, multi_hot=m) for n, r, m in FEATURES]
    configs = (
        DLRMConfig(embedding_dim=4, bottom=(8,), top=(8,)),
        DCNv2Config(embedding_dim=4),
        DeepFMConfig(embedding_dim=4),
        MatrixFactorizationConfig(embedding_dim=4),
        TwoTowerConfig(embedding_dim=4, item_features=("item",)),
    )
    assert [config.name for config in configs] == list(MODELS)
    return {config.name: build_model(config, features, 2).eval() for config in configs}


def of_our_models(size: int, ids: int) -> Inputs:
    """Samples with so many ids in their bags together."""
    offsets = torch.linspace(0, ids, size + 1).long()
    bag = Bag(torch.randint(0, 9, (ids,), dtype=torch.int32), offsets)
    return Inputs(torch.randn(size, 2), torch.randint(0, 20, (size, 2), dtype=torch.int32), (bag,))


def untitled(given: Inputs) -> tuple[Tensor, Tensor, tuple[tuple[Tensor, Tensor], ...]]:
    return given.dense, given.ids, tuple((bag.values, bag.offsets) for bag in given.bags)


ELSEWHERE = """
import sys
class Blocked:
    def find_spec(self, name, *more):
        if name.partition(".")[0] == "slipstream":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import torch
for name, cases in torch.load(sys.argv[1] + "/cases.pt").items():
    program = torch.export.load(f"{sys.argv[1]}/{name}.pt2").module()
    for given, expected in cases:
        torch.testing.assert_close(program(given), expected, rtol=0, atol=1e-6)
    print(name)
assert not any(module.partition(".")[0] == "slipstream" for module in sys.modules)
"""


def test_programs_of_our_models_load_and_run_where_slipstream_cannot_be_imported(tmp_path: Path) -> None:
    cases: dict[str, list[tuple[object, Tensor]]] = {}
    for name, model in our_models().items():
        for dynamic in (True, False):
            program = to_program(model, (of_our_models(4, 5),), dynamic_batch=dynamic)
            assert "slipstream" not in str(program.graph)
            assert program.state_dict.keys() >= model.state_dict().keys()
            torch.export.save(program, tmp_path / f"{name}_{dynamic}.pt2")
            sizes = [(4, 5), (2, 0), (9, 1), (7, 20)] if dynamic else [(4, 5)]
            given = [of_our_models(*size) for size in sizes]
            with torch.no_grad():
                cases[f"{name}_{dynamic}"] = [(untitled(one), model(one)) for one in given]
    torch.save(cases, tmp_path / "cases.pt")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", ELSEWHERE, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(cases)


def test_named_tuples_of_ones_own_are_plain_ones_for_the_program_and_named_for_hooks(tmp_path: Path) -> None:
    class Visit(NamedTuple):
        user: Tensor
        items: dict[str, list[Tensor]]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(9, 3)

        def forward(self, visit: Visit) -> Tensor:
            return self.rows(visit.user) + self.rows(visit.items["seen"][0])

    model, ids = sl.convert(Model()), torch.arange(4)
    kinds: list[type] = []
    model.register_forward_pre_hook(lambda _, given: kinds.append(type(given[0])))
    torch.export.save(to_program(model, (Visit(ids, {"seen": [ids + 1]}),)), tmp_path / "model.pt2")
    assert kinds and set(kinds) == {Visit}
    found = torch.export.load(tmp_path / "model.pt2").module()((ids[:3], {"seen": [ids[1:]]}))
    torch.testing.assert_close(found, model.rows(ids[:3]) + model.rows(ids[1:]))


def test_one_tensor_for_two_arguments_of_the_example() -> None:
    class Difference(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a - b

    example = torch.zeros(2)
    program = to_program(Difference(), (example, example)).module()
    assert torch.equal(program(torch.ones(3), torch.zeros(3)), torch.ones(3))


def test_dots_of_a_program_are_those_of_the_kernel() -> None:
    for ahead in (False, True):
        model, vectors = DotInteraction(5, ahead=ahead), torch.randn(4, 5, 3)
        program = torch.export.export(model, (vectors,))
        assert "slipstream" not in str(program.graph)
        torch.testing.assert_close(program.module()(vectors), model(vectors))


def test_onnx_predicts_the_same(trained: nn.Module, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    path = to_onnx(trained, inputs(4), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    for size in (2, 7):
        given = {name: value.numpy() for name, value in zip(names, inputs(size), strict=True)}
        (found,) = session.run(None, given)
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), trained(*inputs(size)), rtol=0, atol=1e-6)


def test_onnx_without_its_package(trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(NotInstalled, match=r"slipstream-rec\[onnx\]"):
        to_onnx(trained, inputs(4), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_compiled_like_another_librarys_model(trained: nn.Module) -> None:
    torch.compiler.reset()
    model = copy.deepcopy(trained)
    model.zero_grad()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    for function in (model, compiled):
        function(*inputs(6)).square().sum().backward()
    for (name, mine), other in zip(model.named_parameters(), compiled.parameters(), strict=True):
        grads = [g.to_dense() if isinstance(g, sl.embedding.RowGradient) else g for g in (mine.grad, other.grad)]
        torch.testing.assert_close(grads[1], grads[0], msg=lambda text, name=name: f"{name}: {text}")
