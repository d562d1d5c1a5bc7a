"""Matrix factorization by BPR: its arithmetic, the items it draws, and what others do with its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from slipstream import optim
from slipstream.data.batch import Batch, Inputs
from slipstream.data.schema import FeatureInfo
from slipstream.embedding import EmbeddingCollection, PlainEmbeddingCollection, TableConfig
from slipstream.errors import ConfigError, IndexOutOfRange
from slipstream.models import MatrixFactorizationConfig, build_model
from slipstream.models.base import draw_items, other_than
from slipstream.models.matrix_factorization import MatrixFactorization

FEATURES = (
    FeatureInfo(name="user", num_rows=30),
    FeatureInfo(name="hour", num_rows=5),
    FeatureInfo(name="item", num_rows=20),
)


def bpr(engine: Any = "slipstream", **settings: Any) -> Any:
    torch.manual_seed(0)
    config = MatrixFactorizationConfig(objective="bpr", embedding_dim=8, item="item", **settings)
    return build_model(config, FEATURES, 0, engine=engine)


def some_batch(step: int = 0, size: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(step)
    ids = torch.stack([torch.randint(0, f.num_rows, (size,), generator=generator) for f in FEATURES], 1).int()
    labels = (torch.rand(size, generator=generator) > 0.3).float()
    index = torch.arange(step * size, (step + 1) * size)
    return Batch(Inputs(torch.empty(size, 0), ids, ()), labels, index, torch.rand(size, generator=generator) + 0.5)


def by_hand(user: nn.Embedding, item: nn.Embedding, batch: Batch, step: int, candidates: int) -> Tensor:
    """The loss, from torch's modules alone."""
    rows = (batch.labels > 0).nonzero().squeeze(1)
    ids = batch.inputs.ids[rows].long()
    drawn = draw_items(batch, rows, step, item.num_embeddings, 0, candidates).long()
    if candidates > 1:
        drawn = other_than(ids[:, 2], drawn, item.num_embeddings)

    def score(users: Tensor, items: Tensor) -> Tensor:
        return (user(users)[..., :-1] * item(items)[..., :-1]).sum(-1) + item(items)[..., -1]

    with torch.no_grad():
        highest = score(ids[:, :1].expand_as(drawn), drawn).argmax(1)
    worse = drawn.gather(1, highest[:, None]).squeeze(1)
    margins = score(ids[:, 0], ids[:, 2]) - score(ids[:, 0], worse)
    return (functional.softplus(-margins) * batch.weights[rows]).mean()


@pytest.mark.parametrize("candidates", [1, 5])
@pytest.mark.parametrize("name", ["SGD", "Adagrad", "Adam"])
def test_fifty_steps_equal_those_of_torchs_modules(name: str, candidates: int) -> None:
    model = bpr(candidates=candidates)
    tables = model.embeddings.tables
    plain = [nn.Embedding.from_pretrained(tables[name].weight.detach().clone(), freeze=False) for name in tables]
    options: dict[str, Any] = {"SGD": {"lr": 1.0}, "Adagrad": {"lr": 0.05}, "Adam": {"lr": 0.01}}[name]
    dense = {"untouched": "dense"} if name == "Adam" else {}
    ours = getattr(optim, name)(model.embeddings.parameters(), **options, **dense)
    torchs = getattr(torch.optim, name)([table.weight for table in plain], **options)
    for step in range(50):
        batch = some_batch(step)
        losses = model.loss(batch), by_hand(plain[0], plain[1], batch, step, candidates)
        torch.testing.assert_close(*losses)
        for loss, optimizer in zip(losses, (ours, torchs), strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for mine, theirs in zip(model.embeddings.parameters(), (table.weight for table in plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
        for key, value in torchs.state[theirs].items():
            if value.dim():
                torch.testing.assert_close(ours.state[mine][key], value, rtol=1e-4, atol=1e-6)


class ForwardAlone(nn.Module):
    """Tables that have nothing but a forward."""

    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, ids: Tensor, bags: Any = ()) -> Tensor:
        return self.tables(ids, bags)


@pytest.mark.parametrize("candidates", [1, 5])
@pytest.mark.parametrize("kind", ["torch", "xdl", "forward alone"])
def test_all_tables_give_the_same_loss_and_gradients(kind: str, candidates: int) -> None:
    ours = bpr(candidates=candidates)
    other = bpr(kind if kind != "forward alone" else "slipstream", candidates=candidates)
    other.load_state_dict(ours.state_dict())
    tables = list(other.embeddings.parameters())
    if kind == "forward alone":
        other.embeddings = ForwardAlone(other.embeddings)
    for step in range(3):
        for model in (ours, other):
            model.zero_grad()
        losses = [model.loss(some_batch(step)) for model in (ours, other)]
        torch.testing.assert_close(*losses)
        for loss in losses:
            loss.backward()
        for mine, theirs in zip(ours.embeddings.parameters(), tables, strict=True):
            gradient: Any = theirs.grad
            expected = gradient.to_dense()
            torch.testing.assert_close(mine.grad.to_dense(), expected, rtol=1e-5, atol=1e-7)


def test_more_candidates_begin_with_the_same_items() -> None:
    batch, rows = some_batch(size=500), torch.arange(0, 500, 3)
    one, many = (draw_items(batch, rows, 7, 20, 0, count) for count in (1, 8))
    assert torch.equal(one[:, 0], many[:, 0])
    assert (1, 19) == (int(many.min()), int(many.max()))
    assert not torch.equal(many, draw_items(batch, rows, 8, 20, 0, 8))
    # The columns are independent: two of them agree as often as chance has it.
    agree = (many[:, :, None] == many[:, None]).float().mean(0)
    assert agree[~torch.eye(8, dtype=torch.bool)].max() < 0.15


def test_a_positive_is_no_candidate_of_its_own() -> None:
    drawn = torch.tensor([[3, 4], [19, 1], [5, 5]], dtype=torch.int32)
    apart = other_than(torch.tensor([3, 19, 7]), drawn, 20)
    assert apart.tolist() == [[4, 4], [1, 1], [5, 5]] and apart.dtype == torch.int32


def test_the_candidate_trained_against_is_the_one_with_the_highest_score() -> None:
    model = bpr(candidates=6)
    assert isinstance(model, MatrixFactorization)
    batch = some_batch()
    rows = (batch.labels > 0).nonzero().squeeze(1)
    drawn = other_than(batch.inputs.ids[rows, 2], draw_items(batch, rows, 0, 20, 0, 6), 20)
    ids = batch.inputs.ids[rows].unsqueeze(1).repeat(1, 6, 1)
    ids[:, :, 2] = drawn
    with torch.no_grad():
        scores = model(Inputs(torch.empty(ids[..., 0].numel(), 0), ids.flatten(0, 1), ())).view(drawn.shape)
    seen: list[Tensor] = []
    tables: Any = model.embeddings
    tables.table_of["item"].listeners.append(lambda table, ids: seen.append(ids))
    model.loss(batch).backward()
    assert torch.equal(seen[0][:, 0], batch.inputs.ids[rows, 2])
    assert torch.equal(seen[0][:, 1], drawn.gather(1, scores.argmax(1, keepdim=True)).squeeze(1))


@pytest.mark.parametrize("candidates", [1, 4])
def test_rows_behind_a_closed_gate_stay(candidates: int) -> None:
    model = bpr(candidates=candidates)
    optimizer = optim.Adagrad(model.parameters(), 0.1)
    table = model.embeddings.table_of["item"]
    gate = torch.full((20,), 255, dtype=torch.uint8)
    gate[::2] = 0
    table.set_gate(gate)
    before = table.weight.detach().clone()
    batch = some_batch()
    model.loss(batch).backward()
    optimizer.step()
    assert torch.equal(table.weight[::2], before[::2])
    assert not torch.equal(table.weight[1::2], before[1::2])
    positives = int((batch.labels > 0).sum())
    assert table.lookups == 2 * positives
    assert 0 < table.skipped < table.lookups
    assert model.embeddings.table_of["user"].lookups == positives


def test_the_biases_that_fall_out_stay_as_they_are() -> None:
    model = bpr()
    optimizer = optim.Adam(model.parameters(), 0.1)
    users = model.embeddings.tables["user"].weight
    before = users.detach().clone()
    for step in range(5):
        optimizer.zero_grad()
        model.loss(some_batch(step)).backward()
        optimizer.step()
    assert torch.equal(users[:, -1], before[:, -1])
    assert model.bias == 0


@pytest.mark.parametrize("kind", [EmbeddingCollection, PlainEmbeddingCollection])
def test_gather_reads_a_table_at_several_places(kind: Any) -> None:
    collection = kind([TableConfig("user", 5, 3), TableConfig("item", 4, 3)])
    user, item = (collection.tables[name].weight for name in ("user", "item"))
    ids = torch.tensor([[3, 4, 3], [0, 0, 1], [3, 4, 0]])
    rows = collection.gather(("item", "user", "item"), ids)
    assert torch.equal(rows, torch.stack([item[ids[:, 0]], user[ids[:, 1]], item[ids[:, 2]]], 1))
    weights = torch.randn(3, 3, 3)
    (rows * weights).sum().backward()
    expected = torch.zeros(4, 3).index_add(0, ids[:, 0], weights[:, 0]).index_add(0, ids[:, 2], weights[:, 2])
    torch.testing.assert_close(item.grad.to_dense(), expected)


def test_gather_says_what_does_not_fit() -> None:
    collection = EmbeddingCollection([TableConfig("user", 5, 3), TableConfig("item", 4, 3)])
    with pytest.raises(ConfigError, match="no tables"):
        collection.gather(("user", "place"), torch.zeros(1, 2, dtype=torch.int32))
    with pytest.raises(ConfigError, match="for 2 tables"):
        collection.gather(("user", "item"), torch.zeros(1, 3, dtype=torch.int32))
    with pytest.raises(IndexOutOfRange):
        collection.gather(("item", "item"), torch.tensor([[0, 4]]))


def test_a_resumed_training_goes_on_to_the_same_bits() -> None:
    def trained(model: Any, optimizer: Any, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            model.loss(some_batch(step)).backward()
            optimizer.step()

    whole, first, second = (bpr(candidates=4) for _ in range(3))
    trained(whole, optim.Adagrad(whole.parameters(), 0.1), range(8))
    before = optim.Adagrad(first.parameters(), 0.1)
    trained(first, before, range(4))
    second.load_state_dict(first.state_dict())
    after = optim.Adagrad(second.parameters(), 0.1)
    after.load_state_dict(before.state_dict())
    trained(second, after, range(4, 8))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())
