"""A prepared data set: columns in memory-mapped files.

Layout of the folder (little-endian, row-major, so that a run of samples is one slice)::

    store.json                     counts, features, checksums, provenance
    ids.i32                        [N, F] row ids of the one-hot features
    dense.f32                      [N, n_dense]
    labels.u8 | labels.f32         [N]
    time.i64                       [N] unix seconds, optional
    bags/<name>.values.i32         ids of a multi-hot feature
    bags/<name>.offsets.i64        [N + 1]
    encoder.json, vocabulary/...   how raw values became ids; see data.encoder
"""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slipstream.data.atomic import file_sha256
from slipstream.data.batch import Bag, Batch, Inputs
from slipstream.data.batches import Batches, SampleOrder
from slipstream.data.manifest import DENSE, IDS, LABELS, TIME, Manifest, bag_files, inside, read_manifest
from slipstream.data.schema import FeatureInfo
from slipstream.data.writer import StoreWriter
from slipstream.errors import ConfigError, DataError

__all__ = ["Batches", "Store", "StoreWriter"]

_NORESERVE = 0x4000 if sys.platform == "linux" else 0
_NUMPY = {torch.int32: np.int32, torch.int64: np.int64, torch.float32: np.float32, torch.uint8: np.uint8}


class _Column:
    """A memory-mapped file as an array and a tensor over the same bytes; ``shape`` is that of the array."""

    def __init__(self, path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        self.map: mmap.mmap | None = None
        # Kept open: it says whether the file behind the map has changed, whatever is at its path now.
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)
        self.path = path
        self.stamp = self._now()
        """Size and time of change (ns) when it was opened."""
        size = self.stamp[0]
        if size:
            # Private: a stray write into a batch changes neither the file nor kills the process, as it would in a
            # read-only map. Without reservation: else the kernel refuses to map a file larger than the memory in
            # this way.
            self.map = mmap.mmap(
                self._file.fileno(), size, flags=mmap.MAP_PRIVATE | _NORESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
            flat = np.frombuffer(self.map, dtype=_NUMPY[dtype])
        else:
            flat = np.empty(0, dtype=_NUMPY[dtype])
        self.array: npt.NDArray[np.generic] = flat.reshape(shape)
        self.tensor: Tensor = torch.from_numpy(self.array)

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def check_unchanged(self) -> None:
        """Raise DataError if the file was written to since it was opened."""
        now = self._now()
        if now != self.stamp:
            how = "was truncated" if now[0] < self.stamp[0] else "was changed"
            raise DataError(
                f"{how} while it is in use", file=self.path, remedy="prepare the data again, and start anew"
            )

    def read_ahead(self, start: int, stop: int) -> None:
        """Asks the kernel to read the rows ``start`` to ``stop`` in the background."""
        if self.map is None:
            return
        stride = self.array.strides[0]
        first = start * stride // mmap.PAGESIZE * mmap.PAGESIZE
        self.map.madvise(mmap.MADV_WILLNEED, first, min(stop * stride, len(self.map)) - first)


class Store:
    """A prepared data set of ``N`` samples, memory-mapped; ``prepare`` or a ``StoreWriter`` makes one."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.features: tuple[FeatureInfo, ...] = manifest.features
        self.one_hot = tuple(feature for feature in manifest.features if not feature.multi_hot)
        self.multi_hot = tuple(feature for feature in manifest.features if feature.multi_hot)
        self.num_samples: int = manifest.num_samples
        n = self.num_samples
        self.num_dense: int = len(manifest.dense)
        self.fingerprint: str = manifest.fingerprint
        self._ids = _Column(path / IDS, torch.int32, (n, len(self.one_hot)))
        self._dense = _Column(path / DENSE, torch.float32, (n, self.num_dense))
        label_dtype = torch.uint8 if manifest.label_dtype == "uint8" else torch.float32
        self._labels = _Column(path / LABELS[manifest.label_dtype], label_dtype, (n,))
        self._time = _Column(path / TIME, torch.int64, (n,)) if manifest.has_time else None
        self._bags: list[tuple[_Column, _Column]] = []
        for feature in self.multi_hot:
            values, offsets = bag_files(feature.name)
            ends = _Column(path / offsets, torch.int64, (n + 1,))
            size = manifest.files[values].size
            if int(ends.tensor[0]) or 4 * int(ends.tensor[-1]) != size:
                raise DataError("offsets and values disagree", file=path / offsets, remedy="prepare the data again")
            self._bags.append((_Column(path / values, torch.int32, (size // 4,)), ends))

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> Store:
        """Opens a prepared data set.

        Args:
            path: Its folder.
            verify: Also read every file and compare its checksum; the sizes are always compared.

        Raises:
            NotPrepared: The folder holds no prepared data set, or one of a newer format.
            DataError: A file is missing, or has the wrong size or checksum.
        """
        path = Path(path)
        manifest = read_manifest(path)
        sizes = manifest.expected_sizes()
        for feature in manifest.features:
            if feature.multi_hot:
                sizes.setdefault(bag_files(feature.name)[0], -1)
        for name in sizes.keys() | manifest.files.keys():
            file = path / name
            if name not in manifest.files or not file.is_file():
                raise DataError("is missing", file=file, remedy="prepare the data again")
            inside(path, name)
            listed, found = manifest.files[name].size, file.stat().st_size
            if found != listed or sizes.get(name, -1) not in (-1, found):
                raise DataError(
                    f"has {found:,} bytes instead of {listed:,}", file=file, remedy="prepare the data again"
                )
            if verify and file_sha256(file) != manifest.files[name].sha256:
                raise DataError("its checksum is wrong", file=file, remedy="prepare the data again")
        return cls(path, manifest)

    def __len__(self) -> int:
        return self.num_samples

    @property
    def ids(self) -> Tensor:
        """int32 ``[N, F]``, a view of the memory map."""
        return self._ids.tensor

    @property
    def dense(self) -> Tensor:
        """float32 ``[N, n_dense]``, a view of the memory map."""
        return self._dense.tensor

    @property
    def labels(self) -> Tensor:
        """uint8 or float32 ``[N]``, a view of the memory map."""
        return self._labels.tensor

    @property
    def time(self) -> Tensor | None:
        """int64 ``[N]`` unix seconds, a view of the memory map; None when the data has no time."""
        return None if self._time is None else self._time.tensor

    @property
    def bags(self) -> tuple[Bag, ...]:
        """The multi-hot features over all samples, views of the memory map."""
        return tuple(Bag(values.tensor, offsets.tensor) for values, offsets in self._bags)

    def slice(self, start: int, stop: int) -> Batch:
        """The samples ``start`` to ``stop``; ids, dense values and bag values are views.

        Raises:
            ConfigError: The range is not within the store.
            DataError: A label is neither 0 nor 1, or the offsets of a bag fall or leave its values.
        """
        if not 0 <= start <= stop <= self.num_samples:
            raise ConfigError(f"samples {start} to {stop} are not within the store's {self.num_samples}")
        for values, offsets in self._bags:
            ends = offsets.array[start : stop + 1]
            _check_bags(ends[:-1], ends[1:], values.array.size, offsets.path)
        return Batch(
            Inputs(self.dense[start:stop], self.ids[start:stop], tuple(bag.narrow(start, stop) for bag in self.bags)),
            torch.from_numpy(self._checked_labels(self._labels.array[start:stop])),
            torch.from_numpy(np.arange(start, stop, dtype=np.int64)),
            torch.from_numpy(np.ones(stop - start, dtype=np.float32)),
            None if self._time is None else self._time.tensor[start:stop],
        )

    def take(self, rows: npt.NDArray[np.int64]) -> Batch:
        """The samples ``rows`` (int64 ``[B]``, each within the store), copied on the calling thread alone."""
        return Batch(
            Inputs(
                torch.from_numpy(_gather(self._dense.array, rows)),
                torch.from_numpy(_gather(self._ids.array, rows)),
                tuple(_gather_bags(values, offsets, rows) for values, offsets in self._bags),
            ),
            torch.from_numpy(self._checked_labels(_gather(self._labels.array, rows))),
            torch.from_numpy(rows),
            torch.from_numpy(np.ones(rows.size, dtype=np.float32)),
            None if self._time is None else torch.from_numpy(_gather(self._time.array, rows)),
        )

    def _checked_labels(self, labels: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        if labels.dtype == np.uint8 and labels.size and labels.max() > 1:
            file = self.path / LABELS["uint8"]
            raise DataError(f"label {labels.max()} is neither 0 nor 1", file=file, remedy="prepare the data again")
        return labels.astype(np.float32)

    def batches(
        self,
        batch_size: int,
        *,
        start: int = 0,
        stop: int | None = None,
        shuffle_seed: int | None = None,
        order: Tensor | SampleOrder | None = None,
        drop_last: bool = False,
        prefetch: int = 2,
    ) -> Batches:
        """The samples ``start`` to ``stop`` as batches.

        Args:
            batch_size: Samples a batch.
            start: First sample.
            stop: First sample that no longer belongs; None: the end.
            shuffle_seed: None: in order. Else the seed of the order.
            order: int64 [stop - start], counted from ``start``: an order of one's own, the same in each pass; it is
                checked, unless ``slipstream.data.batches.checked_order`` has done that.
            drop_last: Leave out a last batch that is not full.
            prefetch: Pieces to prepare ahead of the training; 0 does everything in the calling thread.

        Raises:
            ConfigError: A number is out of range, or ``order`` is no order of these samples.
        """
        return Batches(
            self,
            batch_size,
            start=start,
            stop=stop,
            shuffle_seed=shuffle_seed,
            order=order,
            drop_last=drop_last,
            prefetch=prefetch,
        )

    def read_ahead(self, start: int, stop: int) -> None:
        """Asks the kernel to read the samples ``start`` to ``stop`` in the background."""
        for column in (self._ids, self._dense, self._labels, self._time, *(offsets for _, offsets in self._bags)):
            if column is not None:
                column.read_ahead(start, stop)

    def check_unchanged(self) -> None:
        """Looks whether a file was truncated or written to since the store was opened (some microseconds).

        Reading a map of a file that has become shorter kills the process, so a training asks before each batch. A file
        that was replaced by another (renamed over) does no harm: the map is that of the old one.

        Raises:
            DataError: One was.
        """
        for column in self._columns():
            column.check_unchanged()

    @property
    def stamps(self) -> dict[str, list[int]]:
        """Size and time of change (ns) of each file, by path below the store's folder, as it was opened."""
        return {str(column.path.relative_to(self.path)): list(column.stamp) for column in self._columns()}

    def _columns(self) -> list[_Column]:
        columns = [self._ids, self._dense, self._labels, *(part for bag in self._bags for part in bag)]
        return columns if self._time is None else [*columns, self._time]


def _gather(source: npt.NDArray[np.generic], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.generic]:
    # "clip" because the default mode checks and buffers, which is several times slower; the callers' rows are within
    # range.
    return np.take(source, rows, axis=0, mode="clip") if rows.size else source[:0].copy()


def _check_bags(first: npt.NDArray[Any], last: npt.NDArray[Any], size: int, file: Path) -> None:
    if first.size and (first.min() < 0 or last.max() > size or (last < first).any()):
        raise DataError("the offsets fall or leave the values", file=file, remedy="prepare the data again")


def _gather_bags(values: _Column, offsets: _Column, rows: npt.NDArray[np.int64]) -> Bag:
    first = _gather(offsets.array, rows).astype(np.int64)
    last = _gather(offsets.array, rows + 1).astype(np.int64)
    _check_bags(first, last, values.array.size, offsets.path)
    lengths = last - first
    starts = np.zeros(rows.size + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    source = np.repeat(first - starts[:-1], lengths) + np.arange(starts[-1])
    return Bag(torch.from_numpy(_gather(values.array, source)), torch.from_numpy(starts))
