"""Trees of the good inputs, and the way back: what is not damaged still reads as before."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load
from tests.fuzz.forms import Form, form
from tests.fuzz.targets import TARGETS, good

TREES = {
    *(
        "globo_parquet",
        "parquet_parquet",
        "pairs_parquet",
        "schema",
        "config",
        "manifest",
        "encoder",
        "result",
        "model",
    ),
    *("resumed", "continued", "policies", "tensors", "metrics", "record", "vocabulary"),
}


def of(name: str) -> Form:
    found = form(good(name)[0])
    assert found is not None
    return found


@pytest.mark.parametrize("name", TARGETS)
def test_every_form_is_seen(name: str) -> None:
    trees = [form(data) for data in good(name)]
    assert {tree is not None for tree in trees} == {name in TREES}
    for found in trees:
        if found is not None:
            tree, back = found
            again = form(back(tree))
            assert again is not None and again[0] == tree


def test_lines_of_json_stay_lines() -> None:
    tree, back = of("metrics")
    tree = [*tree[:2], {"event": None}]
    assert [json.loads(line) for line in back(tree).decode().splitlines()] == tree


def test_a_changed_header_keeps_its_tensors() -> None:
    tree, back = of("model")
    assert tree["__metadata__"]["model"]["name"] == "dlrm"  # JSON inside of a string of JSON
    tree = tree | {"__metadata__": tree["__metadata__"] | {"model": {"name": "none"}}}
    damaged, before = back(tree), good("model")[0]
    assert form(damaged) is not None and b'\\"none\\"' in damaged
    assert {name: value.tolist() for name, value in load(damaged).items()} == {
        name: value.tolist() for name, value in load(before).items()
    }


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([1, 2], [1, 2, None]),
        ([None, True], [None, True, None]),
        ([{"a": 1}], [{"a": 1}, None, None]),
        ([10**30, "\ud800", []], [str(10**30), "?", "[]"]),
        ("x", ["x", None, None]),
    ],
)
def test_columns_of_another_type_or_length_are_written(values: Any, kept: list[Any]) -> None:
    _, back = of("pairs_parquet")
    table = pq.read_table(BytesIO(back({"user": values, "item": [1, 2, 3]})))
    assert table.to_pydict() == {"user": kept, "item": [1, 2, 3]}


def test_what_parquet_has_no_type_for_stays_as_it_was() -> None:
    _, back = of("pairs_parquet")
    assert pq.read_table(BytesIO(back({"user": [{}]}))).num_rows == len(
        pq.read_table(BytesIO(good("pairs_parquet")[0]))
    )
