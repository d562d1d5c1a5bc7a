"""Patterns of other libraries' models that convert and our optimizers must live with; each says where it was met.

The libraries themselves run under ``make interop``.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import slipstream as sl
from slipstream.embedding import Embedding, EmbeddingBag
from slipstream.embedding import tables as tables_of
from slipstream.errors import UnsupportedOption

ROWS, DIM, BATCH = 40, 4, 16


def batches(count: int = 12, columns: int = 3) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [
        (torch.randint(0, ROWS, (BATCH, columns), generator=random), torch.rand(BATCH, generator=random).round())
        for _ in range(count)
    ]


def twins(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """The same model twice, the second converted."""
    torch.manual_seed(0)
    plain = make()
    return plain, sl.convert(copy.deepcopy(plain))


def assert_same(plain: nn.Module, ours: nn.Module, **tolerance: float) -> None:
    assert list(plain.state_dict()) == list(ours.state_dict())
    for (name, value), other in zip(plain.state_dict().items(), ours.state_dict().values(), strict=True):
        torch.testing.assert_close(other, value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def train(
    plain: nn.Module, ours: nn.Module, loss: Callable[[nn.Module, Tensor, Tensor], Tensor], clip: float | None = None
) -> None:
    """Both with Adam, ours with torch's dense semantics."""
    theirs = torch.optim.Adam(plain.parameters(), lr=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dense semantics are slow, and say so
        optimizer = sl.optim.Adam(ours.parameters(), lr=0.01, untouched="dense")
        for ids, labels in batches():
            for model, step in ((plain, theirs), (ours, optimizer)):
                step.zero_grad()
                loss(model, ids, labels).backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                step.step()


class FieldModel(nn.Module):
    """FuxiCTR and DeepCTR: one table a field in a ModuleDict, a linear part with rows of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.ModuleDict({str(f): nn.Embedding(ROWS, DIM) for f in range(3)})
        self.linear = nn.ModuleDict({str(f): nn.Embedding(ROWS, 1, padding_idx=0) for f in range(3)})
        self.top = nn.Linear(3 * DIM, 1)
        self.mask = nn.Parameter(torch.ones(2, 2).bool(), requires_grad=False)  # FuxiCTR's InnerProductInteraction
        self.penalised = [(list(self.rows.parameters()), 1e-3)]  # DeepCTR's regularization_weight
        # FuxiCTR's compile(): the optimizer is made in the constructor.
        self.optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        for module in self.modules():
            if type(module) is nn.Embedding:
                nn.init.normal_(module.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        columns = ids.float()  # both keep ids among floats, and slice [B, 1]
        rows = [self.rows[str(f)](columns[:, f : f + 1].long()) for f in range(3)]
        logit = columns.new_zeros(len(ids), 1)
        for f in range(3):
            logit += self.linear[str(f)](columns[:, f].long())
        return (logit + self.top(torch.cat(rows, dim=-1).flatten(1))).squeeze(1)


def bce(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(model(ids), labels)


def test_fields_of_float_columns_with_clipping() -> None:
    plain, ours = twins(FieldModel)
    train(plain, ours, bce, clip=0.1)
    assert_same(plain, ours, rtol=0, atol=1e-6)


def test_a_penalty_on_whole_tables_held_by_the_model_in_a_list() -> None:
    def loss(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
        penalty = sum(
            factor * parameter.square().sum() for parameters, factor in model.penalised for parameter in parameters
        )
        return bce(model, ids, labels) + penalty

    plain, ours = twins(FieldModel)
    assert ours.penalised[0][0][0] is ours.rows["0"].weight, "the list names the model's own parameters"
    train(plain, ours, loss)
    assert_same(plain, ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("untouched", ["lazy", "dense"])
def test_the_penalty_before_or_after_the_loss_is_one_gradient(untouched: Any) -> None:
    ids = torch.tensor([1, 5, 5])
    terms = [lambda m: m.weight.norm(2) ** 2, lambda m: m(ids).square().sum()]
    for first in (True, False):
        plain, ours = twins(lambda: nn.Embedding(ROWS, DIM))
        for model in (plain, ours):
            for term in terms if first else terms[::-1]:
                term(model).backward()
        torch.testing.assert_close(ours.weight.grad.to_dense(), plain.weight.grad)
        optimizer = sl.optim.SGD(ours.parameters(), lr=0.1, untouched=untouched)
        torch.optim.SGD(plain.parameters(), lr=0.1).step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
        assert_same(plain, ours)


def test_the_optimizer_that_a_constructor_made_is_refused_by_name() -> None:
    model = sl.convert(FieldModel())
    ids, labels = batches(1)[0]
    bce(model, ids, labels).backward()
    with pytest.raises(UnsupportedOption, match=r"slipstream\.optim"):
        model.optimizer.step()
    model.optimizer = sl.optim.Adam(model.parameters(), lr=0.01)  # what the recipes do
    model.optimizer.step()


class Shared(nn.Module):
    """DeepCTR's DIN, TorchRec: one table read by a target, a padded history, and bags."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(ROWS, DIM, padding_idx=0)
        self.bags = nn.ModuleDict({"t": nn.EmbeddingBag(ROWS, DIM, mode="sum", include_last_offset=True)})
        self.places = nn.Embedding(8, DIM)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(3).unsqueeze(0).expand_as(ids)  # SASRec: ids without memory of their own
        history = self.rows(ids) + self.places(places)
        target = self.rows(ids[:, -1])
        again = self.rows(ids[:, :1]).squeeze(1)
        self.rows(ids)  # looked up and not used: no gradient reaches it
        offsets = torch.arange(len(ids) + 1, dtype=torch.int32)
        pooled = self.bags["t"](input=ids[:, 0], offsets=offsets, per_sample_weights=None).float()
        other = self.bags["t"](input=ids.reshape(-1), offsets=offsets * 3, per_sample_weights=None).float()
        return ((history * target.unsqueeze(1)).sum(1) * again + pooled * other).sum(1)


def test_one_table_with_several_readers() -> None:
    plain, ours = twins(Shared)
    train(plain, ours, bce)
    assert_same(plain, ours, rtol=0, atol=1e-6)
    assert not ours.rows.weight[0].any(), "the padding row stays what it was"


class History(Shared):
    """Without the bags, whose sums torch takes in another order."""

    def forward(self, ids: Tensor) -> Tensor:
        history, target = self.rows(ids), self.rows(ids[:, -1])
        return (history * target.unsqueeze(1) * self.rows(ids[:, :1])).sum((1, 2))


def test_dense_semantics_give_the_very_bits_of_torch() -> None:
    """DIN with weights of 1e-4: gradients as small as Adam's eps turn other rounding into another model."""
    plain, ours = twins(History)
    for model in (plain, ours):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1e-4)
    train(plain, ours, bce)
    for name, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_scores_of_all_items_by_the_weight() -> None:
    """RecBole: cross-entropy over the item table, and full_sort_predict."""

    class AllItems(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user, self.item = nn.Embedding(ROWS, DIM), nn.Embedding(ROWS, DIM)

        def forward(self, ids: Tensor) -> Tensor:
            return torch.matmul(self.user(ids[:, 0]) + self.item(ids[:, 1]), self.item.weight.transpose(0, 1))

    plain, ours = twins(AllItems)
    train(plain, ours, lambda model, ids, _: nn.functional.cross_entropy(model(ids), ids[:, 2]))
    assert_same(plain, ours, rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(ours(batches(1)[0][0]), plain(batches(1)[0][0]))


def test_initialised_again_by_apply() -> None:
    """RecBole: ``model.apply(init)`` asks isinstance, and writes to ``weight.data``."""

    def init(module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.xavier_normal_(module.weight.data)

    plain, ours = twins(FieldModel)
    for model in (plain, ours):
        torch.manual_seed(3)
        model.apply(init)
    assert_same(plain, ours)


def test_copies_and_saved_models_train_apart() -> None:
    """DeepCTR's ModelCheckpoint saves the model whole; early stopping keeps a deep copy of the best one."""
    model = sl.convert(Shared())
    ids, labels = batches(1)[0]
    bce(model, ids, labels).backward()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        other.zero_grad()
        before = model.rows.weight.clone()
        optimizer = sl.optim.SGD(other.parameters(), lr=1.0)
        bce(other, ids, labels).backward()
        optimizer.step()
        assert torch.equal(model.rows.weight, before) and not torch.equal(other.rows.weight, before)
        assert tables_of(other)["rows.weight"] is other.rows.table is not model.rows.table


def test_a_checkpoint_of_weights_and_optimizer() -> None:
    """RecBole's trainer: everything through torch.save and torch.load, then best weights are loaded back."""
    model = sl.convert(FieldModel())
    optimizer = sl.optim.Adam(model.parameters(), lr=0.01)

    def step(model: nn.Module, optimizer: Any, which: int) -> None:
        optimizer.zero_grad()
        bce(model, *batches()[which]).backward()
        optimizer.step()

    for which in range(3):
        step(model, optimizer, which)
    buffer = io.BytesIO()
    torch.save({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer)  # weights_only: nothing but tensors, numbers and dictionaries in it
    again = sl.convert(FieldModel())
    again.load_state_dict(saved["state_dict"])
    resumed = sl.optim.Adam(again.parameters(), lr=0.01)
    resumed.load_state_dict(saved["optimizer"])
    for which in range(3, 6):
        step(model, optimizer, which)
        step(again, resumed, which)
    assert_same(model, again, rtol=0, atol=0)


def test_a_disabled_scaler_and_autocast() -> None:
    """RecBole's trainer on a CPU: ``scaler.scale(loss).backward()``, ``scaler.step(optimizer)``."""
    plain, ours = twins(FieldModel)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = sl.optim.SGD(ours.parameters(), lr=0.1)
    other = torch.optim.SGD(plain.parameters(), lr=0.1)
    for model, step in ((plain, other), (ours, optimizer)):
        with torch.autocast("cpu", enabled=False):
            loss = bce(model, *batches(1)[0])
        scaler.scale(loss).backward()
        scaler.step(step)
        scaler.update()
    assert_same(plain, ours)


class Token(nn.Embedding):
    """BERT4Rec: a subclass that only has a constructor of its own and helpers."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__(rows, dim, padding_idx=0)
        self.scale = 2.0

    def scaled(self, ids: Tensor) -> Tensor:
        return self(ids) * self.scale


class Pooled(nn.EmbeddingBag):
    """The same of a bag."""


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.pooled = Token(ROWS, DIM), Pooled(ROWS, DIM)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.token.scaled(ids).sum(1) + self.pooled(ids)).sum(1)


def test_subclasses_without_a_forward_of_their_own_are_converted() -> None:
    plain, ours = twins(Tokens)
    assert isinstance(ours.token, Embedding) and isinstance(ours.token, Token)
    assert isinstance(ours.pooled, EmbeddingBag) and isinstance(ours.pooled, Pooled)
    assert type(ours.token).__name__ == "Token" and sl.check(plain) == [] == sl.check(ours)
    assert sl.convert(ours).token is ours.token
    train(plain, ours, bce)
    assert_same(plain, ours, rtol=0, atol=1e-6)
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(ours), torch.load(buffer, weights_only=False)):
        assert type(other.token) is type(ours.token) and other.token.table is not ours.token.table
        assert_same(ours, other)


@pytest.mark.parametrize("kind", ["parametrized", "spectral"])
def test_a_computed_weight_is_left_and_named(kind: str) -> None:
    model = nn.Sequential(nn.Embedding(ROWS, DIM), nn.Linear(DIM, 1))
    if kind == "parametrized":
        nn.utils.parametrizations.weight_norm(model[0])
    else:
        nn.utils.spectral_norm(model[0])
    (finding,) = sl.check(model)
    assert finding.severity == "note" and "computed" in finding.problem and finding.module == "0"
    sl.convert(model)
    assert not isinstance(model[0], Embedding)
    model(torch.tensor([1, 2])).sum().backward()


def test_pretrained_rows_stay_frozen() -> None:
    """FuxiCTR's PretrainedEmbedding, RecBole's from_pretrained item features."""
    rows = torch.randn(ROWS, DIM)
    model = sl.convert(nn.ModuleDict({"fixed": nn.Embedding.from_pretrained(rows.clone()), "top": nn.Linear(DIM, 1)}))
    optimizer = sl.optim.Adam(model.parameters(), lr=0.1)
    model["top"](model["fixed"](torch.tensor([1, 2]))).sum().backward()
    optimizer.step()
    assert torch.equal(model["fixed"].weight, rows) and model["fixed"].weight.grad is None


def test_a_reduction_over_parameters_of_zero_weight() -> None:
    """RecBole's sync_grad_loss: ``torch.sum(parameter) * 0`` for every parameter."""
    plain, ours = twins(FieldModel)

    def loss(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
        return bce(model, ids, labels) + sum(p.sum() * 0 for p in model.parameters() if p.requires_grad)

    train(plain, ours, loss)
    assert_same(plain, ours, rtol=0, atol=1e-6)
