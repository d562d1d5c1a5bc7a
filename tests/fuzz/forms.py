"""Good input as a tree whose parts may be damaged, and the way back to bytes that keeps the rest of the form right.

A damaged byte seldom gets past a header's length or a file's footer; a damaged part of the tree does, to what reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

Form = tuple[Any, Callable[[Any], bytes]]
"""A tree of dicts and lists, and what makes bytes of such a tree."""
_LENGTH = 8
"""Bytes of a safetensors file in which the length of its header stands."""


@lru_cache
def form(data: bytes) -> Form | None:
    """An input's tree and the way back, if it is JSON, JSON Lines, YAML, safetensors or Parquet."""
    for read in (_json, _json_lines, _safetensors, _parquet, _yaml):
        try:
            found = read(data)
        except (ValueError, RecursionError, yaml.YAMLError, pa.ArrowException):
            continue
        if isinstance(found[0], dict | list):
            return found
    return None


def _dumped(tree: Any) -> bytes:
    return json.dumps(tree, default=str).encode()


def _json(data: bytes) -> Form:
    return json.loads(data), _dumped


def _json_lines(data: bytes) -> Form:
    return [json.loads(line) for line in data.splitlines()], lambda tree: b"".join(_dumped(row) + b"\n" for row in tree)


def _yaml(data: bytes) -> Form:
    return yaml.safe_load(data), _dumped


def _safetensors(data: bytes) -> Form:
    """The header, and what its metadata say in JSON of their own."""
    end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    if end > len(data):
        raise ValueError("no header of that length")
    tree = json.loads(data[_LENGTH:end])
    tree["__metadata__"] = {name: _inner(text) for name, text in tree.get("__metadata__", {}).items()}

    def back(tree: Any) -> bytes:
        metadata = tree.get("__metadata__")
        if isinstance(metadata, dict):
            told = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
            tree = tree | {"__metadata__": told}
        header = _dumped(tree)
        return len(header).to_bytes(_LENGTH, "little") + header + data[end:]

    return tree, back


def _inner(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _parquet(data: bytes) -> Form:
    """The columns with their first values: a damaged one may be of another type, or longer than the others."""
    table = pq.read_table(BytesIO(data), partitioning=None)
    tree = {name: table[name].slice(0, 8).to_pylist() for name in table.column_names}

    def back(tree: dict[str, Any]) -> bytes:
        file, columns = BytesIO(), {_text(name): _column(values) for name, values in tree.items()}
        longest = max((len(column) for column in columns.values()), default=0)
        filled = [pa.concat_arrays([one, pa.nulls(longest - len(one), one.type)]) for one in columns.values()]
        try:
            pq.write_table(pa.table(filled, list(columns)), file)
        except pa.ArrowException:  # a type that Parquet does not have
            return data
        return file.getvalue()

    return tree, back


def _column(values: Any) -> pa.Array:
    values = values if isinstance(values, list) else [values]
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError):
        return pa.array([_text(value) for value in values])


def _text(value: Any) -> str:
    return str(value).encode("utf-8", "replace").decode()
