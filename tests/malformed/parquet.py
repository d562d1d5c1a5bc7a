"""Parquet files: generic ones, clicks of Globo, pairs."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from datetime import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tests.malformed.corpus import Case

N = 40
_CONTEXT = ("environment", "deviceGroup", "os", "country", "region", "referrer_type")
GOOD: dict[str, dict[str, Any]] = {
    "globo": {
        "user_id": [i % 5 for i in range(N)],
        "click_article_id": [i % 7 for i in range(N)],
        "click_timestamp": [1_506_826_800 + i for i in range(N)],
        **{f"click_{name}": [1 + i % 3 for i in range(N)] for name in _CONTEXT},
    },
    "parquet": {
        "label": [i % 2 for i in range(N)],
        "time": [1_600_000_000 + i for i in range(N)],
        "user": [f"u{i % 3}" for i in range(N)],
        "price": [i / 2 for i in range(N)],
    },
    "pairs": {"user": [i % 5 for i in range(N)], "item": [i % 7 for i in range(N)]},
}


def cases() -> Iterator[Case]:
    """Damage to the bytes for each reader, then columns of the wrong kind."""
    for name, columns in GOOD.items():
        for damage, data in _bytes(pa.table(columns)):
            yield _raw(f"{name} parquet/{damage}", data)
        for damage, table in _columns(name, columns):
            yield _raw(f"{name} parquet/{damage}", table)
        yield _raw(f"{name} parquet/a time zone that is not UTF-8", _zone(columns))
    digits = pa.array([1] * N, pa.decimal256(60))
    yield _raw("globo parquet/user_id of 60 digits", pa.table({**GOOD["globo"], "user_id": digits}), "user_id")
    yield _raw("parquet/20,000 columns", lambda: pa.table({f"c{i}": [1] for i in range(20_000)}), "columns")
    yield _raw("parquet/128 MiB of one letter", _bomb, "unpacks")
    yield _raw("parquet/17 million rows of nothing", _many_rows)
    yield Case("parquet/two files of different columns", _two_files, ("1.parquet",))
    yield Case("globo/two files of different columns", _two_click_files, ("1.parquet",))


def _raw(name: str, data: bytes | pa.Table | Callable[[], Any], *says: str) -> Case:
    def build(folder: Path) -> list[str]:
        content = data() if callable(data) else data
        path = folder / "table.parquet"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            pq.write_table(content, path)
        options = ["--format", name.split()[0]] if " parquet/" in name else []
        return ["prepare", str(path), str(folder / "out"), *options]

    return Case(name, build, ("table.parquet", *says))


def written(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def _bytes(table: pa.Table) -> Iterator[tuple[str, bytes]]:
    good = written(table)
    middle = len(good) // 2
    yield "empty", b""
    yield "magic alone", b"PAR1"
    yield "magic twice", b"PAR1PAR1"
    yield "cut in the middle", good[:middle]
    yield "cut at the end", good[:-4]
    yield "wrong magic at the end", good[:-4] + b"PARE"
    yield "wrong magic at the start", b"XXXX" + good[4:]
    yield "length of the footer is huge", good[:-8] + b"\xff\xff\xff\x7f" + b"PAR1"
    yield "length of the footer is negative", good[:-8] + b"\xff\xff\xff\xff" + b"PAR1"
    yield "footer of zeros", good[:-200] + bytes(192) + good[-8:]
    yield "pages of zeros", good[:4] + bytes(middle - 4) + good[middle:]
    yield "pages of ones", good[:4] + b"\xff" * (middle - 4) + good[middle:]
    yield "text", b"user,item\n1,2\n"
    name = table.column_names[0].encode()
    yield "a column's name that is not UTF-8", good.replace(name, b"\xff" + name[1:])
    optional = b"%\x02\x18" + bytes([len(name)]) + name
    assert optional in good
    # With statistics for two levels, where a required column has one. PyArrow 26 ends the process if asked for them.
    yield "a column that may be empty is said not to be", good.replace(optional, optional.replace(b"\x02", b"\0", 1))
    yield "no row", written(table.slice(0, 0))


def _columns(name: str, columns: dict[str, Any]) -> Iterator[tuple[str, pa.Table]]:
    def changed(column: str, values: Any) -> pa.Table:
        return pa.table({**columns, column: values})

    first = next(iter(columns))
    yield f"without {first}", pa.table({key: value for key, value in columns.items() if key != first})
    yield "no column", pa.table({"nothing": pa.nulls(N)})
    table = pa.table(columns)
    yield "a column twice", table.append_column(table.field(0), table.column(0))
    for kind, values in (
        ("structs", [{"a": 1}] * N),
        ("bytes", [b"\xff\xfe"] * N),
        ("times of day", [time(1)] * N),
        ("lists", [[1, 2]] * N),
        ("nested lists", [[[1]]] * N),
        ("maps", pa.array([[("a", 1)]] * N, pa.map_(pa.string(), pa.int64()))),
        ("durations", pa.array([1] * N, pa.duration("s"))),
        ("texts that are not UTF-8", pa.array([b"\xff\xfe"] * N).view(pa.string())),
    ):
        yield f"{first} of {kind}", changed(first, values)
    for column, kinds in {
        "globo": {
            "click_timestamp": ("nulls", "year 9000", "year 3,000,000", "texts"),
            "user_id": ("negative", "floats"),
        },
        "parquet": {
            "label": ("nulls", "texts", "nan"),
            "price": ("nan", "infinite", "huge"),
            "time": ("nulls", "year 9000", "year 3,000,000", "texts"),
            "user": ("not UTF-8",),
        },
        "pairs": {"user": ("negative", "floats")},
    }[name].items():
        values: dict[str, Any] = {
            "nulls": [*columns[column][:-1], None],
            "texts": ["a"] * N,
            "nan": np.array([0.0, 1.0] * (N // 2 - 1) + [0.0, np.nan]),
            "infinite": np.array([1.0] * (N - 1) + [np.inf]),
            "huge": np.array([1.0] * (N - 1) + [1e300]),
            "negative": [*columns[column][:-1], -3],
            "year 9000": pa.array([1] * (N - 1) + [221_845_392_000], pa.timestamp("s")),
            "year 3,000,000": pa.array([1] * (N - 1) + [10**14], pa.timestamp("s")),
            "not UTF-8": pa.array([b"a"] * (N - 1) + [b"\xff"]).view(pa.string()),
            "floats": np.linspace(0, 1, N),
        }
        for kind in kinds:
            yield f"{column}: {kind}", changed(column, values[kind])


def _zone(columns: dict[str, Any]) -> bytes:
    """Arrow's schema, in which the zone is, lies in the file's metadata in base64."""
    good = written(pa.table({**columns, "at": pa.array([1] * N, pa.timestamp("s", "Europe/Paris"))}))
    schema = max(re.findall(rb"[A-Za-z0-9+/]{100,}=*", good), key=len)
    packed = base64.b64decode(schema)
    assert b"Europe/Paris" in packed
    return good.replace(schema, base64.b64encode(packed.replace(b"Europe/Paris", b"Europe/Par\xffs")))


def _bomb() -> bytes:
    text = pa.array(["x" * (1 << 20)] * 8)
    table = pa.table({"user": pa.chunked_array([text] * 16), "label": [i % 2 for i in range(128)]})
    return written(table, use_dictionary=False, compression="zstd")


def _many_rows() -> bytes:
    nothing = pa.chunked_array([pa.nulls(1 << 22, pa.int64())] * 4)
    return written(pa.table({"user": nothing, "label": nothing}), row_group_size=1 << 24)


def _two_files(folder: Path) -> list[str]:
    (folder / "in").mkdir()
    pq.write_table(pa.table(GOOD["parquet"]), folder / "in" / "0.parquet")
    pq.write_table(pa.table(GOOD["pairs"]), folder / "in" / "1.parquet")
    return ["prepare", str(folder / "in"), str(folder / "out"), "--format", "parquet"]


def _two_click_files(folder: Path) -> list[str]:
    (folder / "in").mkdir()
    pq.write_table(pa.table(GOOD["globo"]), folder / "in" / "0.parquet")
    other = pa.table({**GOOD["globo"], "click_timestamp": ["soon"] * N})
    pq.write_table(other, folder / "in" / "1.parquet")
    return ["prepare", str(folder / "in"), str(folder / "out"), "--format", "globo"]
