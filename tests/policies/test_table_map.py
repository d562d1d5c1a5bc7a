"""Which table belongs to which column: asked of the model, never taken from the order of its tables."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.policies.support import TwoTables, make_batch
from torch import Tensor, nn

from slipstream.data.batch import Inputs
from slipstream.data.schema import FeatureInfo
from slipstream.embedding import Embedding, EmbeddingBag, tables
from slipstream.errors import ConfigError
from slipstream.models import MODELS, build_model
from slipstream.models.deepfm import DeepFMConfig
from slipstream.models.matrix_factorization import MatrixFactorizationConfig
from slipstream.policies.table_map import tables_of_inputs
from slipstream.training.config import TrainConfig

BATCH = make_batch(0, 32, with_bag=True).inputs
PAIR = Inputs(BATCH.dense, BATCH.ids)


def names(model: nn.Module, inputs: Inputs) -> list[str]:
    mine = tables(model)
    found = tables_of_inputs("slipstream", mine, model, inputs)
    return [next(name for name, table in mine.items() if table is one) for one in found]


class Swapped(TwoTables):
    """The user's table stands first, and reads the second column."""

    def forward(self, inputs: Inputs) -> Tensor:
        return (self.item(inputs.ids[:, 0]) * self.user(inputs.ids[:, 1])).sum(1)


class WithBag(nn.Module):
    """The bag's table stands first."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.tags = EmbeddingBag(50, 4, mode="sum", include_last_offset=last)
        self.item, self.user = EmbeddingBag(50, 4), Embedding(50, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = last

    def forward(self, inputs: Inputs) -> Tensor:
        bag = inputs.bags[0]
        offsets = bag.offsets if self.last else bag.offsets[:-1]
        rows = self.tags(bag.values, offsets=offsets) + self.item(inputs.ids[:, 1:]) + self.user(inputs.ids[:, 0])
        return nn.functional.dropout(self.norm(rows), training=self.training).sum(1)


def test_columns_are_found_whatever_the_order_of_the_tables() -> None:
    assert names(TwoTables(), PAIR) == ["user.weight", "item.weight"]
    assert names(Swapped(), PAIR) == ["item.weight", "user.weight"]
    for last in (True, False):
        assert names(WithBag(last), BATCH) == ["user.weight", "item.weight", "tags.weight"]


def test_asking_leaves_the_training_as_it_was() -> None:
    model = WithBag(last=True)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    draws = torch.get_rng_state()
    names(model, BATCH)
    assert model.training and model.norm.training and torch.equal(torch.get_rng_state(), draws)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_ours(name: str) -> None:
    features = [FeatureInfo(name=each, num_rows=50) for each in ("user", "item")]
    config = TrainConfig.model_validate({"data": "unused", "model": name}).model
    model = build_model(config, features, 1)
    assert names(model, PAIR) == ["embeddings.tables.user.weight", "embeddings.tables.item.weight"]


def test_bags_and_swapped_features_of_our_models() -> None:
    features = [FeatureInfo(name=each, num_rows=50, multi_hot=each == "tags") for each in ("user", "item", "tags")]
    model = build_model(DeepFMConfig(), features, 1)
    assert [each.split(".")[2] for each in names(model, BATCH)] == ["user", "item", "tags"]
    config = MatrixFactorizationConfig(user="item", item="user")
    model = build_model(config, features[:2], 1)
    assert [each.split(".")[2] for each in names(model, PAIR)] == ["user", "item"]


def test_a_column_of_zeros_is_found_by_elimination_and_two_are_not() -> None:
    ids = PAIR.ids.clone()
    ids[:, 0] = 0
    assert names(Swapped(), Inputs(PAIR.dense, ids)) == ["item.weight", "user.weight"]
    ids[:, 1] = 0
    with pytest.raises(ConfigError, match=r"cannot tell which of the columns \[0, 1\] table 'user.weight' belongs to"):
        names(Swapped(), Inputs(PAIR.dense, ids))


def _forward(function: Any) -> type[TwoTables]:
    return type("Odd", (TwoTables,), {"forward": function})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda self, x: self.user(x.ids[:, 0] + 1).sum(1) + self.item(x.ids[:, 1]).sum(1), "no column of the data"),
        (lambda self, x: self.user(x.ids[:, 0]).sum(1), "'item.weight' is looked up nowhere"),
        (lambda self, x: self.user(x.ids).sum((1, 2)) + self.item(x.ids[:, 1]).sum(1), "serves several columns"),
        (
            lambda self, x: self.user(x.ids[:, 1]).sum(1) + self.item(x.ids[:, 1]).sum(1),
            "two tables are looked up with column 1",
        ),
    ],
)
def test_what_cannot_be_known_is_refused(function: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        names(_forward(function)(60), PAIR)


def test_without_the_model_only_a_single_table_is_known() -> None:
    mine = tables(TwoTables())
    with pytest.raises(ConfigError, match="without the model; train with a Skipper"):
        tables_of_inputs("order", mine, None, PAIR)
