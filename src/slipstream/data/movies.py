"""The films of MovieLens and MovieTweetings: ``id::title (year)::genre|genre``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from slipstream.data.blocks import read_blocks
from slipstream.data.chunk import RawChunk, Text
from slipstream.data.text import hash_text
from slipstream.data.vocabulary import Lookup
from slipstream.errors import DataError

_YEAR = re.compile(r"\((\d{4})\)\s*$")


class MovieTable:
    """Year and genres by the film's id; films that are not in the file have neither.

    Raises:
        DataError: A line is not of the form ``id::title::genres``, or an id stands twice.
    """

    def __init__(self, path: Path) -> None:
        ids: list[str] = []
        # Row 0 stands for every film that is not in the file.
        years, genres = [""], [""]
        for block in read_blocks(path):
            for number, raw in enumerate(block.data.splitlines(), start=block.line):
                # MovieLens-1M is in Latin-1; only titles hold letters outside ASCII, and titles are not used.
                fields = raw.decode("utf-8", "replace").split("::")
                if len(fields) < 3:
                    remedy = "write id::title::genres"
                    raise DataError(f"expected 3 columns, found {len(fields)}", file=path, line=number, remedy=remedy)
                year = _YEAR.search("::".join(fields[1:-1]))
                ids.append(fields[0])
                years.append(year.group(1) if year else "")
                genres.append("" if fields[-1] == "(no genres listed)" else fields[-1])
        if not ids:
            raise DataError("is empty", file=path, remedy="copy the data set's movies.dat again")
        text = Text.from_arrow(pa.array(ids, type=pa.string()))
        hashes = np.empty(len(ids), dtype=np.uint64)
        hash_text(*text, hashes)
        try:
            self._lookup = Lookup(hashes)
        except DataError as error:
            raise DataError("a film stands twice", file=path, line=error.line, remedy="keep one of them") from error
        self._years = Text.from_arrow(pa.array(years, type=pa.string()))
        self._genres = Text.from_arrow(pa.array(genres, type=pa.string()))

    def derive(self, chunk: RawChunk) -> RawChunk:
        """Adds ``year`` and ``genres`` by the column ``movie``."""
        movie = chunk.columns["movie"]
        if not isinstance(movie, Text):
            raise DataError("is not text", file=chunk.file, column="movie")
        hashes, rows = np.empty(chunk.rows, dtype=np.uint64), np.empty(chunk.rows, dtype=np.int32)
        hash_text(*movie, hashes)
        self._lookup.find(hashes, rows)
        return replace(
            chunk, columns={**chunk.columns, "year": self._years.rows(rows), "genres": self._genres.rows(rows)}
        )


def rating_threshold(path: Path) -> float:
    """8 when the first ratings go beyond 5 (MovieTweetings, 0 to 10), else 4 (MovieLens, 0.5 to 5)."""
    for block in read_blocks(path, 1 << 20):
        ratings = re.findall(rb"^[^:\n]*::[^:\n]*::(\d+(?:\.\d+)?)::", block.data, flags=re.MULTILINE)
        return 8.0 if any(float(rating) > 5 for rating in ratings) else 4.0
    raise DataError("is empty", file=path, remedy="copy the data set's ratings.dat again")
