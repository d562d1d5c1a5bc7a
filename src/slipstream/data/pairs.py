"""Pairs of user and item, as collaborative filtering has them: no rating, no time, perhaps a split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from slipstream.data.blocks import TextFile
from slipstream.data.chunk import RawChunk
from slipstream.data.column_checks import missing_columns
from slipstream.data.parquet import arrow_chunk, read_table
from slipstream.data.sources import Task, TextSource
from slipstream.errors import DataError

_USERS = ("user", "user_id", "userid", "uid")
_ITEMS = ("item", "item_id", "itemid", "iid", "movie", "movie_id", "movieid")
_PIECE = 65_536
TEST_SHARE = 0.2
"""Share of each user's pairs that is held out where the file has no split, rounded down, as LightGCN does it."""


def pair_columns(names: Sequence[str]) -> tuple[str, str] | None:
    """The columns of users and items among ``names``, or None."""
    users = [name for name in names if name.lower() in _USERS]
    items = [name for name in names if name.lower() in _ITEMS]
    return (users[0], items[0]) if len(users) == len(items) == 1 else None


def only_pairs(names: Sequence[str]) -> bool:
    """Whether the columns are users, items and perhaps their split; any other may be a label or a time."""
    return pair_columns(names) is not None and len(names) == 2 + ("split" in names)


class PairSource:
    """A file of pairs, held in memory (its ids, as texts where it is CSV, and 8 bytes a pair for the order).

    Files of pairs are grouped by user, which no time-ordered training can use: rows come in a random, seeded order,
    train before test. Where the file has no column ``split``, a fifth of each user's pairs is the test, drawn with the
    same seed.

    Attributes:
        split: How the test pairs were chosen, in words.
        groups: The rows at which train and test end.

    Raises:
        DataError: The file cannot be read or has no columns of users and items.
    """

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.files = (path,)
        text = path.suffix in (".csv", ".gz")
        self._table = _read_csv(path) if text else read_table(path)
        self._first_line = 2 if text else 1
        found = self._table.column_names
        names = pair_columns(found)
        if names is None:
            there = ", ".join(found[:12]) + (", …" if len(found) > 12 else "")
            remedy = "call them user and item, or pass another format"
            raise DataError(f"has no columns of users and items among {there}", file=path, remedy=remedy)
        self.user, self.item = names
        missing_columns([*names, "split"] if "split" in found else names, found, path)
        self._order = np.random.default_rng(seed).permutation(self._table.num_rows)
        if "split" in self._table.column_names:
            split = self._table["split"].to_numpy()
            if not np.isin(split, (0, 1)).all():
                line = int(np.argmin(np.isin(split, (0, 1)))) + self._first_line
                remedy = "correct the column"
                raise DataError("must be 0 (train) or 1 (test)", file=path, line=line, column="split", remedy=remedy)
            self.split = "column split"
            test = split[self._order] == 1
        else:
            self.split = f"{TEST_SHARE:g} of each user's pairs, drawn with seed {seed}"
            users = _codes(self._table[self.user].combine_chunks(), path, self.user)
            test = _share_of_each(users[self._order], TEST_SHARE)
        self._order = self._order[np.argsort(test, kind="stable")]
        self.groups: dict[str, int] = {"train": int((~test).sum()), "test": len(test)}

    def in_file_order(self) -> PairSource:
        """The same pairs in the order of the file."""
        other = copy(self)
        other._order = np.arange(self._table.num_rows)
        return other

    def tasks(self, columns: Sequence[str]) -> Iterator[Task]:
        """The pairs in their random order."""
        for start in range(0, len(self._order), _PIECE):
            yield lambda rows=self._order[start : start + _PIECE]: self._chunk(rows, columns)

    def _chunk(self, rows: np.ndarray, columns: Sequence[str]) -> RawChunk:
        batch = self._table.select(list(columns)).take(pa.array(rows)).combine_chunks().to_batches()[0]
        chunk = arrow_chunk(self.files[0], batch, 1)
        chunk.lines = rows.astype(np.int64) + self._first_line
        return chunk


def _codes(users: pa.Array, path: Path, column: str) -> npt.NDArray[np.integer[Any]]:
    """Users counted from 0.

    Raises:
        DataError: They are not single values.
    """
    try:
        return users.dictionary_encode(null_encoding="encode").indices.to_numpy()
    except pa.ArrowNotImplementedError as error:
        what = f"holds {users.type}, not users"
        raise DataError(what, file=path, column=column, remedy="make it numbers or texts") from error


def _share_of_each(codes: npt.NDArray[np.integer[Any]], share: float) -> npt.NDArray[np.bool_]:
    """Marks the first ``share`` of each user's rows, rounded down; ``codes`` are the users, counted from 0."""
    order = np.argsort(codes, kind="stable")
    counts = np.bincount(codes)
    rank = np.empty(codes.size, dtype=np.int64)
    rank[order] = np.arange(codes.size) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank < (share * counts).astype(np.int64)[codes]


def _read_csv(path: Path) -> pa.Table:
    # Arrow takes any bytes for names, and fails when they are looked at.
    header = TextSource((path,)).header()
    names = pacsv.ReadOptions(column_names=header, skip_rows=1)
    # Ids are texts: of "007" and "7" Arrow would make one, and of all ids another kind from file to file.
    ids = dict.fromkeys(pair_columns(header) or (), pa.string())
    texts = pacsv.ConvertOptions(column_types=ids, strings_can_be_null=False)
    try:
        with TextFile(path) as file:
            table = pacsv.read_csv(file, names, convert_options=texts)
        for name, column in zip(table.column_names, table.columns, strict=True):
            if pa.types.is_string(column.type):
                row = pc.index(
                    pc.call_function("match_substring", [column], pc.MatchSubstringOptions("\0")), True
                ).as_py()
                if row >= 0:
                    remedy = "save the file as UTF-8 text"
                    raise DataError("holds a NUL byte", file=path, line=row + 2, column=name, remedy=remedy)
        return table
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(f"cannot be read ({reason})", file=path, remedy="correct the row") from error
