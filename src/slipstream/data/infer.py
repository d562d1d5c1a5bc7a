"""A schema for a table that brings none: by the names and types of its columns, and only where they leave no doubt."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import polars as pl
import pyarrow as pa
from pydantic import ValidationError

from slipstream.data.blocks import drop_unreadable, read_blocks
from slipstream.data.column_checks import missing_columns
from slipstream.data.parquet import open_parquet
from slipstream.data.schema import MultiHot, Schema
from slipstream.data.sources import read_header
from slipstream.errors import ConfigError, DataError, first_problem

_LABELS = ("label", "click", "clicked", "is_click", "target", "y")
_TIMES = ("time", "timestamp", "unix_time", "datetime", "date")
_EXAMPLE_ROWS = 1000
_EXAMPLE_BYTES = 1 << 20


def infer_schema(file: Path, *, delimiter: str = ",") -> Schema:
    """Guesses the roles: label and time by name; then text and integers are categories, floats dense, lists multi-hot.

    Raises:
        ConfigError: No column has a name usual for a label, or several do, or a column's type has no role; or there are
            no others.
        DataError: The file cannot be read.
    """
    columns = _parquet_columns(file) if file.suffix == ".parquet" else _csv_columns(file, delimiter)
    if "" in columns:
        raise ConfigError(f"{file}: column {list(columns).index('') + 1} has no name", remedy=_REMEDY)
    label = _only(columns, _LABELS, file, "label", required=True)
    time = _only(columns, _TIMES, file, "time", required=False)
    roles: dict[str, list[str]] = {"categorical": [], "dense": [], "multi_hot": []}
    for name, role in columns.items():
        if name in (label, time):
            continue
        if role not in roles:
            raise ConfigError(f"{file}: column {name!r} has the type {role}, which has no role", remedy=_REMEDY)
        roles[role].append(name)
    try:
        return Schema(
            label=label,
            time=time,
            categorical=tuple(roles["categorical"]),
            dense=tuple(roles["dense"]),
            multi_hot=tuple(MultiHot(name=name) for name in roles["multi_hot"]),
        )
    except ValidationError as error:
        what = f"{first_problem(error)} (the columns are {_some(columns)})"
        raise ConfigError(f"{file}: {what}", remedy=_REMEDY) from error


_REMEDY = (
    "write a schema and pass it with --schema: a YAML file with lines such as `label: COLUMN`, `time: COLUMN`, "
    "`categorical: [COLUMN, COLUMN]`, `dense: [COLUMN]`, `multi_hot: [COLUMN]`"
)


def _only(columns: dict[str, str], names: tuple[str, ...], file: Path, role: str, *, required: bool) -> str | None:
    found = [name for name in columns if name.lower() in names]
    if len(found) > 1 or (required and not found):
        what = f"columns {', '.join(map(repr, found))} could all be the {role}" if found else f"no column is the {role}"
        raise ConfigError(f"{file}: {what} (the columns are {_some(columns)})", remedy=_REMEDY)
    return found[0] if found else None


def _some(columns: dict[str, str]) -> str:
    return ", ".join(map(repr, [*columns][:12])) + (", …" if len(columns) > 12 else "")


def _parquet_columns(file: Path) -> dict[str, str]:
    def role(kind: pa.DataType) -> str:
        if pa.types.is_dictionary(kind):
            return role(kind.value_type)
        if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return "categorical"
        if pa.types.is_boolean(kind):
            return "categorical"
        if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            return "dense"
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return "multi_hot"
        return "time" if pa.types.is_temporal(kind) else str(kind)

    return {column.name: role(column.type) for column in open_parquet(file).schema_arrow}


def _csv_columns(file: Path, delimiter: str) -> dict[str, str]:
    block = next(read_blocks(file, _EXAMPLE_BYTES), None)
    if block is None:
        raise DataError("is empty", file=file, remedy="name a file with rows")
    names = read_header(file, block, delimiter)
    missing_columns(names, names, file)
    rows = drop_unreadable(block.data.partition(b"\n")[2])[0]
    read = partial(
        pl.read_csv, separator=delimiter, has_header=False, n_rows=_EXAMPLE_ROWS, infer_schema_length=_EXAMPLE_ROWS
    )
    try:
        example = read(rows)
    except pl.exceptions.NoDataError:
        return dict.fromkeys(names, "categorical")
    except pl.exceptions.PolarsError:
        # Rows that cannot be read are reported with their line by the reading itself; the roles only need the good
        # ones.
        try:
            example = read(rows, ignore_errors=True, truncate_ragged_lines=True, quote_char=None)
        except pl.exceptions.PolarsError as error:
            raise DataError("has no rows that can be told apart", file=file, remedy=_REMEDY) from error
    kinds = [*example.dtypes, *[pl.String()] * len(names)]
    return {name: "dense" if kind.is_float() else "categorical" for name, kind in zip(names, kinds, strict=False)}
