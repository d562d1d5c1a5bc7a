"""Fits an encoder to the first rows: vocabularies, means and deviations, in one pass."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from slipstream.data.atomic import file_sha256
from slipstream.data.chunk import Decoded
from slipstream.data.encoder import (
    CALENDAR_ROWS,
    ENCODER,
    ENCODER_VERSION,
    DenseSpec,
    Encoder,
    EncoderSpec,
    SparseSpec,
    vocabulary_file,
)
from slipstream.data.formats import RawData
from slipstream.data.names import DenseTransform
from slipstream.data.vocabulary import Known, Lookup, ValueCounter
from slipstream.errors import DataError


class DenseStatistics:
    """Mean and standard deviation of columns without their missing values, joined chunk by chunk (Chan et al. 1979)."""

    def __init__(self, columns: int) -> None:
        self._count, self._mean, self._squares = (np.zeros(columns) for _ in range(3))
        self._least, self._most = np.full(columns, np.inf), np.full(columns, -np.inf)

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Adds rows, float64 ``[n, columns]``, NaN where missing."""
        there = ~np.isnan(values)
        count = there.sum(axis=0)
        filled = np.where(there, values, 0.0)
        mean = filled.sum(axis=0) / np.maximum(count, 1)
        squares = (np.where(there, values - mean, 0.0) ** 2).sum(axis=0)
        total = np.maximum(self._count + count, 1)
        delta = mean - self._mean
        self._squares += squares + delta**2 * self._count * count / total
        self._mean += delta * count / total
        self._count += count
        self._least = np.minimum(self._least, np.where(there, values, np.inf).min(axis=0, initial=np.inf))
        self._most = np.maximum(self._most, np.where(there, values, -np.inf).max(axis=0, initial=-np.inf))

    def result(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and standard deviation of each column; 1 where a column does not vary."""
        std = np.sqrt(self._squares / np.maximum(self._count, 1))
        constant = self._least == self._most  # whose mean and squares have rounding errors
        return np.where(constant, self._least, self._mean), np.where(constant | (std == 0), 1.0, std)


class Previous(NamedTuple):
    """An encoder that is extended, with its data set's folder."""

    folder: Path
    encoder: Encoder

    @classmethod
    def load(cls, folder: Path, data: RawData) -> Previous:
        """Reads it.

        Raises:
            DataError: Its columns are not those of ``data``.
        """
        encoder = Encoder.load(folder)
        if encoder.spec.columns != data.schema:
            raise DataError("has other columns: its vocabulary cannot be extended by this data", file=folder)
        return cls(folder, encoder)

    @property
    def hash_rows(self) -> int | None:
        """Rows of hashed features; None where there are vocabularies."""
        return next((sparse.num_rows for sparse in self.encoder.spec.sparse if sparse.kind == "hash"), None)

    def vocabulary(self, name: str) -> Known:
        """The values of a feature."""
        return Known(self.folder / vocabulary_file(name), self.encoder.lookup(name))

    def extended(self, sparse: tuple[SparseSpec, ...], rows: int) -> EncoderSpec:
        """The specification with tables that have grown."""
        spec = self.encoder.spec
        return spec.model_copy(
            update={
                "encoder_version": ENCODER_VERSION,
                "sparse": sparse,
                "fitted_rows": spec.fitted_rows + rows,
                "lineage": (*spec.lineage, file_sha256(self.folder / ENCODER)),
            }
        )


class Fitter:
    """Collects what an encoder needs. A context manager: leaving the block closes the temporary files.

    Args:
        data: What the columns are.
        folder: For temporary files and the vocabularies.
        min_frequency: Values seen less often share row 0.
        hash_rows: When set, ids are hashes within a table of so many rows, and there is no vocabulary.
        dense: Transform of all dense columns.
        nan_is_missing: As in the rules.
        previous: A prepared data set whose vocabularies are extended: its ids stay, new values come after them, and its
            transforms are kept.

    Raises:
        DataError: Its columns are not those of ``data``.
    """

    def __init__(
        self,
        data: RawData,
        folder: Path,
        *,
        min_frequency: int,
        hash_rows: int | None,
        dense: DenseTransform,
        nan_is_missing: bool,
        previous: Path | None = None,
    ) -> None:
        self._data, self._folder = data, folder
        self._min_frequency = min_frequency
        self._previous = None if previous is None else Previous.load(previous, data)
        self._hash_rows = hash_rows = hash_rows if self._previous is None else self._previous.hash_rows
        self._transform: DenseTransform = dense
        self._nan_is_missing = nan_is_missing
        schema = data.schema
        counted = [] if hash_rows else [*schema.categorical, *(column.name for column in schema.multi_hot)]
        self._counters = {name: ValueCounter(folder) for name in counted}
        self._statistics = DenseStatistics(len(schema.dense))
        self._binary = True
        self.rows = 0
        """Rows seen."""

    def __enter__(self) -> Fitter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for counter in self._counters.values():
            counter.close()

    @property
    def needed(self) -> bool:
        """Whether there is anything to learn from the data."""
        schema = self._data.schema
        learns_labels = schema.label is not None and not self._data.binary
        return bool(self._counters) or learns_labels or (self._transform == "standardise" and bool(schema.dense))

    def add(self, rows: Decoded, keep: npt.NDArray[np.bool_] | None = None) -> None:
        """Counts some rows, or those where ``keep`` (bool ``[n]``) is true."""
        schema = self._data.schema
        everything = keep is None or bool(keep.all())
        self.rows += len(rows) if keep is None else int(keep.sum())
        if self._counters:
            for name, text, hashes in zip(schema.categorical, rows.texts, rows.hashes, strict=True):
                if everything or keep is None:
                    self._counters[name].add(hashes, text)
                else:
                    self._counters[name].add(hashes[keep], text.rows(keep))
            for column, (text, hashes, offsets) in zip(schema.multi_hot, rows.bags, strict=True):
                inside = slice(None) if everything or keep is None else np.repeat(keep, np.diff(offsets))
                self._counters[column.name].add(np.ascontiguousarray(hashes[inside]), text.rows(inside))
        chosen = slice(None) if keep is None else keep
        if self._transform == "standardise" and schema.dense:
            self._statistics.add(rows.dense[chosen])
        if rows.labels is not None and self._binary:
            labels = rows.labels[chosen]
            self._binary = bool(((labels == 0) | (labels == 1)).all())

    def finish(self) -> Encoder:
        """Writes the vocabularies below the folder and makes the encoder."""
        schema = self._data.schema
        (self._folder / "vocabulary").mkdir(exist_ok=True)
        lookups: dict[str, Lookup] = {}
        sparse: list[SparseSpec] = []
        for name in schema.categorical:
            sparse.append(self._sparse(name, lookups, multi_hot=False))
        for name in schema.calendar:
            sparse.append(SparseSpec(name=name, kind="calendar", num_rows=CALENDAR_ROWS[name]))
        for column in schema.multi_hot:
            sparse.append(self._sparse(column.name, lookups, multi_hot=True))
        if self._previous is not None:
            spec = self._previous.extended(tuple(sparse), self.rows)
            return Encoder(spec, lookups)
        mean, std = self._statistics.result()
        spec = EncoderSpec(
            format=self._data.format,
            columns=schema,
            binary=self._data.binary or (schema.label is not None and self._binary),
            nan_is_missing=self._nan_is_missing,
            sparse=tuple(sparse),
            dense=tuple(
                DenseSpec(name=name, transform=self._transform, mean=float(mean[i]), std=float(std[i]))
                for i, name in enumerate(schema.dense)
            ),
            min_frequency=self._min_frequency,
            fitted_rows=self.rows,
        )
        return Encoder(spec, lookups)

    def _sparse(self, name: str, lookups: dict[str, Lookup], *, multi_hot: bool) -> SparseSpec:
        if self._hash_rows:
            return SparseSpec(name=name, kind="hash", num_rows=self._hash_rows, multi_hot=multi_hot)
        known = None if self._previous is None else self._previous.vocabulary(name)
        path = self._folder / vocabulary_file(name)
        lookup = lookups[name] = self._counters.pop(name).finish(path, self._min_frequency, known)
        return SparseSpec(
            name=name,
            kind="vocabulary",
            num_rows=lookup.num_values + 1,
            multi_hot=multi_hot,
            vocabulary=lookup.digest,
        )
