"""The file formats that are known by name, and what their columns mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from slipstream.data.blocks import check_regular
from slipstream.data.chunk import Numbers, RawChunk, Text
from slipstream.data.clicks import HISTORY, ClickSource
from slipstream.data.infer import infer_schema
from slipstream.data.movies import MovieTable, rating_threshold
from slipstream.data.names import FORMATS, DenseTransform, FormatName, NegativeMethod
from slipstream.data.pairs import PairSource, only_pairs
from slipstream.data.parquet import ParquetSource, open_parquet
from slipstream.data.schema import MultiHot, Schema
from slipstream.data.sources import Source, TextSource
from slipstream.data.text import NOT_A_NUMBER, OK, parse_numbers
from slipstream.errors import ConfigError, DataError

_PASS = f"pass --format, one of {', '.join(FORMATS)}"

_CRITEO = Schema(
    label="label",
    dense=tuple(f"I{i}" for i in range(1, 14)),
    categorical=tuple(f"C{i}" for i in range(1, 27)),
)
_AVAZU_COLUMNS = (
    *("id", "click", "hour", "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain"),
    *("app_category", "device_id", "device_ip", "device_model", "device_type", "device_conn_type"),
    *(f"C{i}" for i in range(14, 22)),
)
_AVAZU = Schema(label="click", time="time", categorical=_AVAZU_COLUMNS[3:], calendar=("hour", "weekday"))
_MOVIES = Schema(
    label="rating",
    time="time",
    categorical=("user", "movie", "year"),
    calendar=("hour", "weekday"),
    multi_hot=(MultiHot(name="genres"),),
    user="user",
    item="movie",
)
_GLOBO_CONTEXT = ("environment", "deviceGroup", "os", "country", "region", "referrer_type")
_GLOBO = Schema(
    time="click_timestamp",
    categorical=("user_id", "click_article_id", *(f"click_{name}" for name in _GLOBO_CONTEXT), *HISTORY),
    calendar=("hour", "weekday"),
    user="user_id",
    item="click_article_id",
)


@dataclass(frozen=True)
class RawData:
    """A raw data set: where its rows come from and what its columns mean."""

    format: FormatName
    source: Source
    schema: Schema
    binary: bool = False
    """Labels other than 0 and 1 are bad rows."""
    dense: DenseTransform = "standardise"
    """The transform of dense columns unless the user says otherwise."""
    negatives: int = 0
    """Non-clicks drawn for each row unless the user says otherwise."""
    negative_method: NegativeMethod = "recent"
    derive: Callable[[RawChunk], RawChunk] | None = None
    """Adds columns to a chunk."""
    reads: tuple[str, ...] = ()
    """Columns that only ``derive`` needs."""
    makes: frozenset[str] = frozenset()
    """Columns that ``derive`` adds."""
    beside: tuple[Path, ...] = ()
    """Files that ``derive`` has read."""
    groups: Mapping[str, int] = field(default_factory=dict)
    """Named runs of rows and the raw row at which each ends."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read from the files."""
        return (*(name for name in self.schema.columns if name not in self.makes), *self.reads)

    def unlabelled(self) -> RawData:
        """The same data without its label column, for prediction; the files may have that column or not."""
        source, label = self.source, self.schema.label
        if isinstance(source, TextSource) and source.names and label in source.names:
            # Without a header only the number of fields tells (Kaggle's own test files lack the label).
            others = tuple(name for name in source.names if name != label)
            source = replace(source, names=others) if source.first_fields() == len(others) else source
        schema = self.schema.model_copy(update={"label": None, "label_threshold": None})
        return replace(self, source=source, schema=schema)

    def in_file_order(self) -> RawData:
        """The same data with its rows as the files have them."""
        source = self.source
        return replace(self, source=source.in_file_order() if isinstance(source, PairSource | ClickSource) else source)


def open_raw(
    path: str | Path,
    *,
    format: str | None = None,
    schema: Schema | None = None,
    label_threshold: float | None = None,
    seed: int = 0,
) -> RawData:
    """Finds out what ``path`` holds; see ``FORMATS`` for the names.

    Args:
        path: A file, or a folder of files.
        format: None: told by the name, the header and the columns.
        schema: Only with the formats ``csv`` and ``parquet``; None: inferred.
        label_threshold: Labels at least this are 1, others 0.
        seed: Of the order of pairs, which have no time.

    Raises:
        DataError: The path does not exist, or is empty.
        ConfigError: The format is unknown, or the columns' meaning cannot be inferred.
    """
    path = Path(path)
    if not path.exists():
        raise DataError("does not exist", file=path, remedy="check the path")
    if not path.is_dir():
        check_regular(path)
    format = format or ("parquet" if schema and _is_parquet(path) else "csv" if schema else detect(path))
    if format not in FORMATS:
        raise ConfigError(f"format {format!r} is unknown", remedy=f"choose one of {', '.join(FORMATS)}")
    if schema is not None and format not in ("csv", "parquet"):
        raise ConfigError(f"the format {format} brings its own schema", remedy="leave the schema or the format out")
    data = _OPENERS[format](path, schema, seed)
    if label_threshold is not None:
        if data.schema.label is None:
            remedy = "leave the threshold out"
            raise ConfigError(f"{path} has no label that a threshold could be applied to", remedy=remedy)
        changed = data.schema.model_copy(update={"label_threshold": label_threshold})
        data = replace(data, schema=changed)
    return replace(data, binary=True) if data.schema.label_threshold is not None else data


def detect(path: Path) -> FormatName:
    """The format of a file or folder, told by its names, its header and its columns.

    Raises:
        ConfigError: It cannot be told.
    """
    if path.is_dir():
        if (path / "ratings.dat").is_file():
            return "movietweetings" if rating_threshold(path / "ratings.dat") > 5 else "movielens"
        names = sorted(file.name for file in path.iterdir() if file.is_file())
        if any(re.match(r"day_\d+(\.gz)?$", name) for name in names):
            return "criteo_terabyte"
        if any(name.endswith(".parquet") for name in names):
            return "parquet"
        raise ConfigError(f"cannot tell the format of the folder {path}", remedy=f"name a file in it, or {_PASS}")
    if _is_parquet(path):
        columns = set(open_parquet(path).schema_arrow.names)
        if {"click_article_id", "click_timestamp"} <= columns:
            return "globo"
        return "pairs" if only_pairs(tuple(columns)) else "parquet"
    first = TextSource((path,), names=None, delimiter="\t").header()
    if len(first) == 40 and re.fullmatch(r"[01]", first[0]):
        return "criteo"
    commas = ",".join(first).split(",")
    if tuple(commas) == _AVAZU_COLUMNS:
        return "avazu"
    named = path.suffix == ".csv" or path.suffixes[-2:] == [".csv", ".gz"]
    if len(commas) > 1 and (named or all(re.fullmatch(r"[A-Za-z_][\w .-]*", name) for name in commas)):
        return "pairs" if only_pairs(commas) else "csv"
    raise ConfigError(f"cannot tell the format of {path}", remedy=_PASS)


def _is_parquet(path: Path) -> bool:
    if path.is_dir():
        return any(path.glob("*.parquet"))
    check_regular(path)
    with path.open("rb") as file:
        return file.read(4) == b"PAR1" or path.suffix == ".parquet"


def _files(path: Path, *patterns: str) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    # Hidden files are others' (._day_0 of a Mac, .day_0.partial of a download).
    found = {f for pattern in patterns for f in path.glob(pattern) if f.is_file() and not f.name.startswith(".")}
    if not found:
        remedy = "name the folder that holds the data, or one file"
        raise DataError(f"holds no file named {' or '.join(patterns)}", file=path, remedy=remedy)
    if twice := [file for file in sorted(found) if file.with_name(f"{file.name}.gz") in found]:
        raise DataError(
            "is there packed, too: all rows would count twice", file=twice[0], remedy="move one of them away"
        )
    # day_2 before day_10
    return tuple(sorted(found, key=lambda file: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", file.name)]))


def _criteo(format: Literal["criteo", "criteo_terabyte"]) -> Callable[[Path, Schema | None, int], RawData]:
    def opener(path: Path, _schema: Schema | None, _seed: int) -> RawData:
        files = _files(path, "day_*", "*.tsv", "*.tsv.gz", "train.txt")
        source = TextSource(files, delimiter="\t", names=_CRITEO.columns, quotes=False)
        return RawData(format, source, _CRITEO, binary=True, dense="log1p")

    return opener


def _avazu(path: Path, _schema: Schema | None, _seed: int) -> RawData:
    source = TextSource(_files(path, "*.csv", "*.csv.gz"), names=_AVAZU_COLUMNS, quotes=False)
    return RawData("avazu", source, _AVAZU, binary=True, derive=_avazu_time, reads=("hour",), makes=frozenset({"time"}))


def _avazu_time(chunk: RawChunk) -> RawChunk:
    """Adds ``time`` from ``hour``, which is written YYMMDDHH."""
    column = chunk.columns["hour"]
    if not isinstance(column, Text):
        raise DataError("is not text", file=chunk.file, column="hour")
    values, status = parse_numbers(column)
    number = np.where((status == OK) & (np.abs(values) < 1e8), values, -1).astype(np.int64)
    year, month, day, hour = number // 1_000_000, number // 10_000 % 100, number // 100 % 100, number % 100
    months = ((2000 + year - 1970) * 12 + np.clip(month, 1, 12) - 1).astype("datetime64[M]")
    last = ((months + 1).astype("datetime64[D]") - months.astype("datetime64[D]")).astype(np.int64)
    wrong = (number < 0) | (year > 99) | (month < 1) | (month > 12) | (day < 1) | (day > last) | (hour > 23)
    wrong |= (status == OK) & (number != values)
    status = np.where(wrong, NOT_A_NUMBER, status).astype(np.uint8)
    seconds = months.astype("datetime64[D]").astype(np.int64) * 86_400 + (day - 1) * 86_400 + hour * 3600
    time = Numbers(np.where(status == OK, seconds, np.nan), status)
    return replace(chunk, columns={**chunk.columns, "time": time})


def _movies(format: Literal["movietweetings", "movielens"]) -> Callable[[Path, Schema | None, int], RawData]:
    def opener(path: Path, _schema: Schema | None, _seed: int) -> RawData:
        ratings = path / "ratings.dat" if path.is_dir() else path
        movies = ratings.with_name("movies.dat")
        for file in (ratings, movies):
            if not file.is_file():
                remedy = "the folder must hold ratings.dat and movies.dat"
                raise DataError("is missing", file=file, remedy=remedy)
        schema = _MOVIES.model_copy(update={"label_threshold": 8.0 if format == "movietweetings" else 4.0})
        source = TextSource((ratings,), delimiter="::", names=("user", "movie", "rating", "time"), quotes=False)
        table, made = MovieTable(movies), frozenset({"year", "genres"})
        return RawData(format, source, schema, binary=True, derive=table.derive, makes=made, beside=(movies,))

    return opener


def _globo(path: Path, _schema: Schema | None, _seed: int) -> RawData:
    files = _files(path, "*.parquet")
    columns = [name for name in _GLOBO.columns if name not in HISTORY]
    source = ClickSource(files, columns=columns, user="user_id", item="click_article_id", time="click_timestamp")
    return RawData("globo", source, _GLOBO, negatives=2, negative_method="recent")


def _pairs(path: Path, _schema: Schema | None, seed: int) -> RawData:
    source = PairSource(path, seed)
    schema = Schema(categorical=(source.user, source.item), user=source.user, item=source.item)
    return RawData("pairs", source, schema, negatives=1, negative_method="uniform", groups=source.groups)


def _parquet(path: Path, schema: Schema | None, _seed: int) -> RawData:
    files = _files(path, "*.parquet")
    return RawData("parquet", ParquetSource(files), schema or infer_schema(files[0]))


def _csv(path: Path, schema: Schema | None, _seed: int) -> RawData:
    files = _files(path, "*.csv", "*.csv.gz", "*.tsv", "*.tsv.gz")
    source = TextSource(files)
    if len(source.header()) == 1 and len(replace(source, delimiter="\t").header()) > 1:
        source = replace(source, delimiter="\t")
    return RawData("csv", source, schema or infer_schema(files[0], delimiter=source.delimiter))


_OPENERS: dict[str, Callable[[Path, Schema | None, int], RawData]] = {
    "criteo": _criteo("criteo"),
    "criteo_terabyte": _criteo("criteo_terabyte"),
    "avazu": _avazu,
    "movietweetings": _movies("movietweetings"),
    "movielens": _movies("movielens"),
    "globo": _globo,
    "pairs": _pairs,
    "parquet": _parquet,
    "csv": _csv,
}
