"""Plain modules, safetensors, torch.export and ONNX of converted models predict as the model does."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model
from torch import Tensor, nn

import slipstream as sl
from slipstream.data import Bag, Inputs
from slipstream.data.schema import FeatureInfo
from slipstream.errors import NotInstalled
from slipstream.export import save_safetensors, to_onnx, to_plain, to_program
from slipstream.models import DeepFM, DeepFMConfig

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
    import sys

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
