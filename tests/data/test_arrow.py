"""Anything with an Arrow stream as input of a Skipper loop."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import torch
from torch import nn
from torch.nn import functional

import slipstream as sl
from slipstream.data import Batches
from slipstream.errors import ConfigError, DataError
from slipstream.policies import Random

SIZE = 1000
COLUMNS: dict[str, list[Any]] = {
    "user": [n % 37 for n in range(SIZE)],
    "item": [n * 7 % 11 for n in range(SIZE)],
    "tags": [[n % 3] * (n % 4) for n in range(SIZE)],
    "price": [n / 8 for n in range(SIZE)],
    "click": [n % 2 == 0 for n in range(SIZE)],
    "when": [datetime.fromtimestamp(1_000_000_000 + n, UTC) for n in range(SIZE)],
}


def duckdb_relation() -> Any:
    duckdb = pytest.importorskip("duckdb")
    return duckdb.from_arrow(pa.table(COLUMNS))


def hugging_face() -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict(COLUMNS)


SOURCES: dict[str, Callable[[], Any]] = {
    "arrow": lambda: pa.table(COLUMNS),
    "reader": lambda: pa.table(COLUMNS).to_reader(max_chunksize=130),
    "small pieces": lambda: pa.concat_tables([pa.table(COLUMNS).slice(n, 90) for n in range(0, SIZE, 90)]),
    "polars": lambda: pl.DataFrame(COLUMNS),
    "duckdb": duckdb_relation,
    "hugging face": hugging_face,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_all_samples_in_order_with_all_columns(kind: str) -> None:
    source = SOURCES[kind]()
    batches = Batches.from_arrow(
        source, ["user", "item"], "click", dense=["price"], bags=["tags"], time="when", batch_size=64
    )
    seen = list(batches)
    assert [len(batch) for batch in seen] == [64] * 15 + [40]
    whole = sl.data.Batch.concat(seen)
    assert torch.equal(whole.index, torch.arange(SIZE))
    assert whole.inputs.ids[:, 0].tolist() == COLUMNS["user"] and whole.inputs.ids[:, 1].tolist() == COLUMNS["item"]
    assert whole.inputs.ids.dtype == torch.int32 and whole.inputs.dense[:, 0].tolist() == COLUMNS["price"]
    assert whole.labels.tolist() == [float(click) for click in COLUMNS["click"]]
    assert whole.time is not None and whole.time.tolist() == [1_000_000_000 + n for n in range(SIZE)]
    (bag,) = whole.inputs.bags
    assert bag.values.tolist() == [tag for tags in COLUMNS["tags"] for tag in tags]
    assert bag.offsets.diff().tolist() == [len(tags) for tags in COLUMNS["tags"]]
    if kind != "reader":
        assert sum(len(batch) for batch in batches) == SIZE, "a table can be iterated again"


def test_a_shuffled_view_of_a_dataset_keeps_its_order() -> None:
    view = hugging_face().shuffle(seed=1).select(range(100))
    (batch,) = Batches.from_arrow(view, ["user"], None, batch_size=100)
    assert batch.inputs.ids[:, 0].tolist() == list(view["user"])


def test_as_input_of_a_skipper_loop() -> None:
    model = sl.convert(nn.ModuleDict({"user": nn.Embedding(37, 4), "item": nn.Embedding(11, 4)}))
    optimizer = sl.optim.Adam(model.parameters(), lr=0.1)
    skipper = sl.Skipper(model, Random(0.5), batch_size=50)
    for batch in skipper(Batches.from_arrow(pl.DataFrame(COLUMNS), ["user", "item"], "click", batch_size=64)):
        logits = (model["user"](batch.inputs.ids[:, 0]) * model["item"](batch.inputs.ids[:, 1])).sum(1)
        losses = functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
        optimizer.zero_grad()
        (losses * batch.weights).mean().backward()
        optimizer.step()
    assert 0.4 < skipper.report().share_of_inputs_trained < 0.6


def test_drop_last_and_no_rows() -> None:
    table = pa.table(COLUMNS)
    assert [len(b) for b in Batches.from_arrow(table, ["user"], None, batch_size=300, drop_last=True)] == [300] * 3
    assert list(Batches.from_arrow(table.slice(0, 0), ["user"], None)) == []


@pytest.mark.parametrize(
    ("changes", "asked", "said"),
    [
        ({"user": [None, *COLUMNS["user"][1:]]}, {}, "column 'user': a value is missing"),
        ({"user": [-1 if n == 70 else 0 for n in range(SIZE)]}, {}, "71, column 'user': -1 is no row id"),
        ({"user": ["a"] * SIZE}, {}, "holds string, not row ids.*slipstream prepare"),
        ({"price": ["a"] * SIZE}, {"dense": ["price"]}, "holds string, not numbers"),
        ({}, {"bags": ["item"]}, "holds int64, not lists"),
        ({"tags": [None] * SIZE}, {"bags": ["tags"]}, "holds null, not lists|a list is missing"),
        ({}, {"ids": ["nobody"]}, "column 'nobody': no such column.*'user'"),
        ({"tags": [[1, 2]] * 70 + [[], [3, -7]] + [[1]] * 928}, {"bags": ["tags"]}, "72, column 'tags': -7 is no row"),
        ({"tags": [[1, 2]] * 70 + [[], [3, None]] + [[1]] * 928}, {"bags": ["tags"]}, "72, column 'tags': a value is"),
    ],
)
def test_bad_data_is_named_by_row_and_column(changes: dict[str, Any], asked: dict[str, Any], said: str) -> None:
    table = pa.table(COLUMNS | changes)
    with pytest.raises(DataError, match=said):
        list(Batches.from_arrow(table, **({"ids": ["user"], "label": None, "batch_size": 64} | asked)))


def test_a_column_may_serve_twice_but_not_be_there_twice() -> None:
    (batch,) = Batches.from_arrow(
        pa.table(COLUMNS), ["user", "user"], None, dense=["price"], time="user", batch_size=SIZE
    )
    assert torch.equal(batch.inputs.ids[:, 0], batch.inputs.ids[:, 1]) and batch.time is not None
    twice = pa.table([pa.array([1]), pa.array([2])], names=["user", "user"])
    with pytest.raises(DataError, match="column 'user': there are several of this name"):
        list(Batches.from_arrow(twice, ["user"], None))


def test_what_has_no_stream_is_refused() -> None:
    with pytest.raises(ConfigError, match="list has no __arrow_c_stream__"):
        Batches.from_arrow([1, 2], ["user"], None)
    with pytest.raises(ConfigError, match="batch_size"):
        Batches.from_arrow(pa.table(COLUMNS), ["user"], None, batch_size=0)
