"""From checked raw values to row ids and numbers; saved beside the data, so that new files are encoded alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slipstream import documents
from slipstream.data.atomic import file_sha256, write_text
from slipstream.data.chunk import Decoded, Rules
from slipstream.data.manifest import MANIFEST, inside, read_manifest, safe_name
from slipstream.data.names import DenseTransform, FormatName
from slipstream.data.parquet import DAMAGE
from slipstream.data.schema import MAX_ROWS, FeatureInfo, Schema
from slipstream.data.text import Text, hash_text
from slipstream.data.vocabulary import Hashes, Lookup
from slipstream.errors import DataError, NotPrepared, first_problem

ENCODER_VERSION = 3
"""2: vocabularies may extend earlier ones (``lineage``). 3: it says which values they hold (``vocabulary``), so that
two that differ in nothing but their values are told apart. Versions 1 and 2 are read as they are."""
ENCODER = "encoder.json"
CALENDAR_ROWS = {"hour": 25, "weekday": 8}
"""Rows of the tables of calendar features: 24 hours, 7 weekdays, and row 0."""


class SparseSpec(BaseModel):
    """How a categorical, calendar or multi-hot feature becomes ids."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["vocabulary", "hash", "calendar"]
    num_rows: int = Field(ge=1, le=MAX_ROWS)
    """Rows of the table including row 0 (out of vocabulary; a hashed feature never uses it)."""
    multi_hot: bool = False
    vocabulary: str | None = None
    """Sha256 of the vocabulary's values in the order of their ids (of their hashes); None where there is none, and
    before version 3."""


class DenseSpec(BaseModel):
    """How a dense column is transformed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    transform: DenseTransform
    """log1p: log(1 + max(x, 0)), as DLRM does for Criteo; standardise: (x - mean) / std; a missing value becomes 0."""
    mean: float = Field(default=0.0, allow_inf_nan=False)
    std: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class EncoderSpec(BaseModel):
    """The contents of ``encoder.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder_version: int = ENCODER_VERSION
    format: FormatName
    """The raw format it was fitted on."""
    columns: Schema
    """What the raw columns are."""
    binary: bool
    """Labels are 0 or 1."""
    nan_is_missing: bool
    sparse: tuple[SparseSpec, ...]
    """One-hot features in the order of the ids, then multi-hot ones."""
    dense: tuple[DenseSpec, ...]
    min_frequency: int = Field(ge=1)
    """Values seen less often in the fitted rows share row 0."""
    fitted_rows: int = Field(ge=0)
    """Rows, first in time, on which vocabularies and statistics were fitted."""
    lineage: tuple[str, ...] = ()
    """Sha256 of the files of the encoders that this one extends, the first one first: ids of theirs mean the same."""

    @model_validator(mode="after")
    def _matches_its_columns(self) -> EncoderSpec:
        columns = self.columns
        expected = [(name, False) for name in columns.one_hot] + [(column.name, True) for column in columns.multi_hot]
        if [(sparse.name, sparse.multi_hot) for sparse in self.sparse] != expected:
            raise ValueError("its sparse features are not those of its columns")
        if tuple(column.name for column in self.dense) != columns.dense:
            raise ValueError("its dense features are not those of its columns")
        for sparse in self.sparse:
            if (sparse.kind == "calendar") != (sparse.name in columns.calendar):
                raise ValueError(f"feature {sparse.name!r} cannot be of kind {sparse.kind}")
            if sparse.kind == "hash" and sparse.num_rows < 2:
                raise ValueError(f"feature {sparse.name!r} is hashed to no row")
        return self


@dataclass
class Encoded:
    """Rows as the store holds them."""

    ids: npt.NDArray[np.int32]
    """int32 ``[n, F]``."""
    dense: npt.NDArray[np.float32]
    """float32 ``[n, n_dense]``."""
    labels: npt.NDArray[np.float32]
    """float32 ``[n]``; ones when the data has no label."""
    time: npt.NDArray[np.int64] | None
    """int64 ``[n]``."""
    bags: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]
    """Values int32 ``[m]`` and offsets int64 ``[n + 1]`` of each multi-hot feature."""


class Encoder:
    """Encodes checked rows. Unseen values get the id 0.

    Args:
        spec: What to do with which column.
        lookups: For each feature with a vocabulary, its ids by hash.
    """

    def __init__(self, spec: EncoderSpec, lookups: dict[str, Lookup]) -> None:
        self.spec = spec
        self._lookups = lookups

    @property
    def features(self) -> tuple[FeatureInfo, ...]:
        """The features of a store made with this encoder."""
        return tuple(
            FeatureInfo(name=sparse.name, num_rows=sparse.num_rows, multi_hot=sparse.multi_hot)
            for sparse in self.spec.sparse
        )

    @property
    def rules(self) -> Rules:
        """What counts as a bad row."""
        return Rules(self.spec.columns, self.spec.binary, self.spec.nan_is_missing)

    def encode(self, rows: Decoded) -> Encoded:
        """Encodes some rows.

        Raises:
            DataError: A dense value is beyond float32 once standardised.
        """
        one_hot = [sparse for sparse in self.spec.sparse if not sparse.multi_hot]
        ids = np.empty((len(rows), len(one_hot)), dtype=np.int32)
        for i, sparse in enumerate(one_hot):
            if sparse.kind == "calendar":
                ids[:, i] = _calendar(sparse.name, rows.time)
            else:
                self._find(sparse, rows.hashes[i], ids[:, i])
        bags = []
        multi_hot = [sparse for sparse in self.spec.sparse if sparse.multi_hot]
        for sparse, (_, hashes, offsets) in zip(multi_hot, rows.bags, strict=True):
            values = np.empty(hashes.size, dtype=np.int32)
            self._find(sparse, hashes, values)
            bags.append((values, offsets))
        dense = np.empty(rows.dense.shape, dtype=np.float32)
        for i, column in enumerate(self.spec.dense):
            with np.errstate(over="ignore"):
                dense[:, i] = transform(rows.dense[:, i], column)
            if column.transform == "standardise":
                _check_finite(dense[:, i], rows, i, column)
        labels = np.ones(len(rows), dtype=np.float32) if rows.labels is None else rows.labels
        return Encoded(ids, dense, labels, rows.time, bags)

    def lookup(self, name: str) -> Lookup:
        """The ids of a feature with a vocabulary."""
        return self._lookups[name]

    def _find(self, sparse: SparseSpec, hashes: Hashes, out: npt.NDArray[np.int32]) -> None:
        if sparse.kind == "hash":
            out[:] = hashes % np.uint64(sparse.num_rows - 1) + np.uint64(1)
        else:
            self._lookups[sparse.name].find(hashes, out)

    def save(self, folder: Path) -> None:
        """Writes ``encoder.json``; the vocabularies are written when they are fitted."""
        write_text(folder / ENCODER, self.spec.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Encoder:
        """Reads the encoder of a prepared data set.

        Raises:
            NotPrepared: The folder has no encoder (synthetic data, for one), or one of a newer version.
            DataError: The encoder or a vocabulary is damaged.
        """
        folder = Path(folder)
        path = folder / ENCODER
        if not path.is_file():
            remedy = "name the data set that the run was trained on"
            raise NotPrepared("holds no encoder: it was not made from raw files", file=folder, remedy=remedy)
        text = documents.read_text(inside(folder, ENCODER), documents.MAX_JSON_BYTES)
        try:
            version = _Version.model_validate_json(text).encoder_version
            if version > ENCODER_VERSION:
                raise NotPrepared(
                    f"has version {version}, this slipstream reads up to {ENCODER_VERSION}",
                    file=path,
                    remedy="update slipstream-rec",
                )
            spec = EncoderSpec.model_validate_json(text)
        except ValidationError as error:
            raise DataError(f"is damaged ({first_problem(error)})", file=path, remedy=_AGAIN) from error
        vocabularies = [sparse for sparse in spec.sparse if sparse.kind == "vocabulary"]
        _check_sums(folder, [ENCODER, *(vocabulary_file(sparse.name) for sparse in vocabularies)])
        lookups: dict[str, Lookup] = {}
        for sparse in vocabularies:
            file = inside(folder, vocabulary_file(sparse.name))
            lookup = lookups[sparse.name] = load_lookup(file)
            if lookup.num_values != sparse.num_rows - 1:
                what = f"holds {lookup.num_values:,} values instead of {sparse.num_rows - 1:,}"
                raise DataError(what, file=file, remedy=_AGAIN)
            if sparse.vocabulary not in (None, lookup.digest):
                raise DataError("holds other values than the data was encoded with", file=file, remedy=_AGAIN)
        return cls(spec, lookups)


_AGAIN = "prepare the data again"


def _check_sums(folder: Path, names: list[str]) -> None:
    """Whether the files of an encoder are those that the data set was prepared with."""
    if not (folder / MANIFEST).is_file():
        return
    files = read_manifest(folder).files
    for name in names:
        file = folder / name
        if name not in files or not file.is_file():
            raise DataError("is missing", file=file, remedy=_AGAIN)
        if file_sha256(file) != files[name].sha256:
            raise DataError("its checksum is wrong", file=file, remedy=_AGAIN)


def lineage(folder: Path) -> tuple[str, ...]:
    """The encoders that a prepared data set's extends; none where it has none."""
    path = folder / ENCODER
    if not path.is_file():
        return ()
    try:
        text = documents.read_text(inside(folder, ENCODER), documents.MAX_JSON_BYTES)
        return EncoderSpec.model_validate_json(text).lineage
    except ValidationError as error:
        raise DataError(f"is damaged ({first_problem(error)})", file=path, remedy=_AGAIN) from error


class _Version(BaseModel):
    encoder_version: int


def vocabulary_file(name: str) -> str:
    """Where the vocabulary of the feature ``name`` is, below the store's folder."""
    return f"vocabulary/{safe_name(name)}.parquet"


def load_lookup(path: Path) -> Lookup:
    """Reads a vocabulary.

    Raises:
        DataError: The file is missing or damaged.
    """
    pieces: list[Hashes] = []
    try:
        reader = pq.ParquetFile(path)
        if "value" not in reader.schema_arrow.names:
            raise DataError("has no column value", file=path, remedy=_AGAIN)
        for batch in reader.iter_batches(1 << 18, columns=["value"]):
            text = Text.from_arrow(batch.column(0).cast(pa.string()))
            hashes = np.empty(batch.num_rows, dtype=np.uint64)
            hash_text(*text, hashes)
            pieces.append(hashes)
    except DAMAGE as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(f"cannot be read ({reason})", file=path, remedy=_AGAIN) from error
    try:
        return Lookup(np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint64))
    except DataError as error:
        raise DataError(error.message, file=path, line=error.line, remedy=_AGAIN) from error


def transform(values: npt.NDArray[np.float64], column: DenseSpec) -> npt.NDArray[np.float64]:
    """Transforms a dense column, float64 ``[n]``; NaN (missing) becomes 0."""
    if column.transform == "log1p":
        changed = np.log1p(np.maximum(values, 0))
    elif column.transform == "standardise":
        changed = (values - column.mean) / column.std
    else:
        changed = values
    return np.nan_to_num(changed, nan=0.0)


def _check_finite(dense: npt.NDArray[np.float32], rows: Decoded, place: int, column: DenseSpec) -> None:
    """Whether what was standardised is within float32."""
    wrong = ~np.isfinite(dense)
    if wrong.any():
        row = int(wrong.argmax())
        file, line = rows.places.of(int(rows.rows[row]))
        fitted = f"mean {column.mean:g} and standard deviation {column.std:g} of the rows fitted on"
        raise DataError(
            f"value {rows.dense[row, place]:g} is too large to be standardised by {fitted}",
            file=file,
            line=line,
            column=column.name,
            remedy="correct the value, or transform the column by log1p",
        )


def _calendar(name: str, time: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
    if time is None:
        raise DataError("needs a time", column=name)
    # 1970-01-01 was a Thursday; Monday is 1.
    return 1 + (time // 3600 % 24 if name == "hour" else (time // 86_400 + 3) % 7)
