"""Writes a prepared data set, piece by piece and atomically."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from slipstream.data.atomic import file_sha256, fsync_path, partial_name, replace_folder, write_text
from slipstream.data.manifest import DENSE, IDS, LABELS, MANIFEST, TIME, FileInfo, Manifest, bag_files, read_manifest
from slipstream.data.schema import FeatureInfo
from slipstream.errors import ConfigError, DataError, OutputError

if TYPE_CHECKING:
    from slipstream.data.store import Store

Array = npt.NDArray[Any]
_OF_A_STORE = (
    r"store\.json|ids\.i32|dense\.f32|time\.i64|labels\.(u8|f32)|bags/[^/]+\.(values\.i32|offsets\.i64)"
    r"|encoder\.json|vocabulary/[^/]+\.parquet|quarantine\.tsv"
)
"""Names of a prepared data set's files, for one whose manifest cannot be read."""


class _Output:
    """A growing file with its running checksum."""

    def __init__(self, path: Path, dtype: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("xb")
        self._digest = hashlib.sha256()
        self.path, self.dtype, self.size = path, np.dtype(dtype), 0

    def write(self, values: Array) -> None:
        data = np.ascontiguousarray(values, dtype=self.dtype).data.cast("B") if values.size else b""
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def close(self) -> FileInfo:
        self._file.close()
        fsync_path(self.path)
        return FileInfo(size=self.size, sha256=self._digest.hexdigest())

    def drop(self) -> None:
        with suppress(OSError):  # what could not be written is written once more
            self._file.close()


class StoreWriter:
    """Writes a store beside its final place and renames it there on :meth:`commit`.

    Use it as a context manager: leaving the block without a commit removes what was written. ::

        with StoreWriter(out, [FeatureInfo(name="user", num_rows=10)], dense=("price",)) as writer:
            for ids, dense, labels in pieces:
                writer.append(ids, dense, labels)
            store = writer.commit()

    Args:
        path: The store's folder; a link to a folder stays, and the store goes where it leads.
        features: One-hot features in the order of the columns of ``ids``, then the multi-hot ones in the order of
            ``bags``.
        dense: Names of the dense columns.
        label_dtype: ``"uint8"`` for labels 0 and 1, ``"float32"`` for any number.
        has_time: Whether samples have a time.
        overwrite: Replace a store that is already there.

    Raises:
        DataError: Something else, or a store and ``overwrite`` is False, is already at ``path``.
        ConfigError: A one-hot feature follows a multi-hot one, or two features share a name.
        OutputError: The system refuses to write, here or in any method; nothing is left.
    """

    def __init__(
        self,
        path: str | Path,
        features: Sequence[FeatureInfo],
        *,
        dense: Sequence[str] = (),
        label_dtype: Literal["uint8", "float32"] = "uint8",
        has_time: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.path = real_target(Path(path))
        self._overwrite = overwrite
        check_target(self.path, overwrite=overwrite)
        kinds = [feature.multi_hot for feature in features]
        if kinds != sorted(kinds):
            raise ConfigError("one-hot features must come before multi-hot ones")
        if len({feature.name for feature in features}) != len(features):
            raise ConfigError("two features have the same name")
        self._features = tuple(features)
        self._one_hot = [feature for feature in features if not feature.multi_hot]
        self._multi_hot = [feature for feature in features if feature.multi_hot]
        self._limits = np.array([feature.num_rows for feature in self._one_hot], dtype=np.int64)
        self._dense = tuple(dense)
        self._label_dtype: Literal["uint8", "float32"] = label_dtype
        self._has_time = has_time
        self._positives = 0.0
        self.num_samples = 0
        """Samples written so far."""
        self.folder = partial_name(self.path)
        """The temporary folder; extra files are written there through :meth:`add_file`."""
        self._open = True
        self._files: dict[str, FileInfo] = {}
        self._outputs: dict[str, _Output] = {}
        kinds_of = {IDS: "<i4", DENSE: "<f4", LABELS[label_dtype]: "u1" if label_dtype == "uint8" else "<f4"}
        if has_time:
            kinds_of[TIME] = "<i8"
        for feature in self._multi_hot:
            values, offsets = bag_files(feature.name)
            kinds_of |= {values: "<i4", offsets: "<i8"}
        self._ends = [0] * len(self._multi_hot)
        with self._writing():
            self.folder.mkdir(parents=True)
            for name, kind in kinds_of.items():
                self._outputs[name] = _Output(self.folder / name, kind)
            for feature in self._multi_hot:
                self._outputs[bag_files(feature.name)[1]].write(np.zeros(1, dtype=np.int64))

    def append(
        self,
        ids: Array,
        dense: Array | None,
        labels: Array,
        time: Array | None = None,
        bags: Sequence[tuple[Array, Array]] = (),
    ) -> None:
        """Adds ``n`` samples.

        Args:
            ids: Integer ``[n, F]``.
            dense: float32 ``[n, n_dense]``; None when there are no dense columns.
            labels: ``[n]``, numbers; 0 and 1 only when the label dtype is uint8.
            time: int64 ``[n]`` unix seconds; exactly when the store has time.
            bags: For each multi-hot feature (values integer ``[m]``, offsets int64 ``[n + 1]``).

        Raises:
            DataError: A shape is wrong, an id is outside its table, or a dense value or label is not finite.
        """
        n = len(labels)
        dense = np.zeros((n, 0), dtype=np.float32) if dense is None else dense
        self._check_shapes(n, ids, dense, time, bags)
        if n == 0:
            return
        _check_ids(ids, self._limits, self._one_hot, self.num_samples)
        if dense.size and not np.isfinite(dense).all():
            row, column = np.argwhere(~np.isfinite(dense))[0]
            raise DataError("value is not finite", line=self.num_samples + int(row) + 1, column=self._dense[column])
        if self._label_dtype == "uint8" and not np.isin(labels, (0, 1)).all():
            raise DataError("label is neither 0 nor 1", remedy="use label_dtype='float32'")
        if not np.isfinite(labels).all():
            raise DataError("label is not finite")
        for feature, (values, offsets) in zip(self._multi_hot, bags, strict=True):
            limit = np.array([feature.num_rows], dtype=np.int64)
            _check_ids(values.reshape(-1, 1), limit, [feature], self.num_samples)
            if offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
                raise DataError("offsets must rise from 0 to the number of values", column=feature.name)
        with self._writing():
            self._outputs[IDS].write(ids)
            self._outputs[DENSE].write(dense)
            self._outputs[LABELS[self._label_dtype]].write(labels)
            if time is not None:
                self._outputs[TIME].write(time)
            for i, (feature, (values, offsets)) in enumerate(zip(self._multi_hot, bags, strict=True)):
                names = bag_files(feature.name)
                self._outputs[names[0]].write(values)
                self._outputs[names[1]].write(offsets[1:].astype(np.int64) + self._ends[i])
                self._ends[i] += len(values)
        self._positives += float(labels.sum(dtype=np.float64))
        self.num_samples += n

    def add_file(self, name: str, write: Callable[[Path], object]) -> None:
        """Adds a file of any kind: ``write`` is called with the path to write it to."""
        path = self.folder / name
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
            fsync_path(path)
            self._files[name] = FileInfo(size=path.stat().st_size, sha256=file_sha256(path))

    def commit(self, provenance: Mapping[str, JsonValue] | None = None) -> Store:
        """Finishes the store, puts it in its place and opens it.

        Raises:
            DataError: The place has been taken meanwhile.
        """
        from slipstream.data.store import Store  # that module offers the writer too, and is imported first

        with self._writing():
            files = self._files | {name: output.close() for name, output in self._outputs.items()}
        manifest = Manifest(
            num_samples=self.num_samples,
            num_positives=self._positives,
            dense=self._dense,
            features=self._features,
            label_dtype=self._label_dtype,
            has_time=self._has_time,
            files=files,
            provenance=dict(provenance or {}),
        )
        with self._writing():
            write_text(self.folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
            check_target(self.path, overwrite=self._overwrite)
            replace_folder(self.folder, self.path)
        self._open = False
        return Store.open(self.path)

    def discard(self) -> None:
        """Removes what was written; does nothing after a commit."""
        if self._open:
            for output in self._outputs.values():
                output.drop()
            shutil.rmtree(self.folder, ignore_errors=True)
            self._open = False

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.discard()
            if isinstance(error, OutputError):
                raise
            raise OutputError(self.path, error) from error

    def _check_shapes(
        self, n: int, ids: Array, dense: Array, time: Array | None, bags: Sequence[tuple[Array, Array]]
    ) -> None:
        if ids.shape != (n, len(self._one_hot)) or not np.issubdtype(ids.dtype, np.integer):
            raise DataError(f"ids must be integers of shape {(n, len(self._one_hot))}, got {ids.dtype} {ids.shape}")
        if dense.shape != (n, len(self._dense)):
            raise DataError(f"dense must have shape {(n, len(self._dense))}, got {dense.shape}")
        if (time is not None) != self._has_time or (time is not None and time.shape != (n,)):
            raise DataError(f"time must {'be given with shape ' + str((n,)) if self._has_time else 'not be given'}")
        if len(bags) != len(self._multi_hot) or any(offsets.shape != (n + 1,) for _, offsets in bags):
            raise DataError(f"bags must be {len(self._multi_hot)} pairs with offsets of shape {(n + 1,)}")


def real_target(path: Path) -> Path:
    """Where a store at ``path`` is written: links are followed, since no folder can take the place of one.

    Raises:
        DataError: It leads in a circle, or is no name that something could be written beside.
    """
    if path.name in ("", ".."):
        raise DataError("is no name for a new folder", file=path, remedy="name the folder itself")
    if not path.is_symlink():
        return path
    try:
        real = path.resolve()
    except RuntimeError:  # before Python 3.13
        real = path
    if real.is_symlink():
        raise DataError("is a link in a circle", file=path, remedy="choose another output folder")
    return real


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuses to write a store over something that is no store, or over a store when ``overwrite`` is False.

    Raises:
        DataError: ``path`` is taken.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / MANIFEST).is_file():
        raise DataError("exists and is not a prepared data set", file=path, remedy="choose another output folder")
    if not overwrite:
        raise DataError(
            "is already prepared", file=path, remedy="choose another folder or pass overwrite (--overwrite)"
        )
    if (other := _other_than_store(path)) is not None:
        raise DataError(
            f"holds {other}, which is no part of the prepared data set, and would be removed with it",
            file=path,
            remedy="move that elsewhere, or choose another output folder",
        )


def _other_than_store(path: Path) -> str | None:
    """What else lies in a store's folder, below it; None: nothing."""
    try:
        listed = {MANIFEST, *read_manifest(path).files}
    except DataError:  # it may be replaced all the same
        listed = None
    for place, folders, files in os.walk(path):
        links = (name for name in folders if os.path.islink(os.path.join(place, name)))
        for name in sorted((*files, *links)):
            found = (Path(place) / name).relative_to(path).as_posix()
            if found not in listed if listed is not None else not re.fullmatch(_OF_A_STORE, found):
                return found
    return None


def _check_ids(ids: Array, limits: npt.NDArray[np.int64], features: Sequence[FeatureInfo], before: int) -> None:
    if ids.size == 0 or (ids.min() >= 0 and (ids.max(axis=0) < limits).all()):
        return
    row, column = np.argwhere((ids < 0) | (ids >= limits))[0]
    raise DataError(
        f"id {int(ids[row, column])} is outside the table of {int(limits[column])} rows",
        line=before + int(row) + 1,
        column=features[column].name,
    )
