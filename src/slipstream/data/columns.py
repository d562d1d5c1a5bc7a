"""``Columns``: batches of any loader, as the Skipper wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from slipstream.data.batch import Batch, Inputs
from slipstream.errors import ConfigError, IndexOutOfRange

_INT32 = torch.iinfo(torch.int32)


class Columns:
    """Makes a :class:`Batch` of what another library's loader yields: the Skipper's ``to_batch``.

    The loader's own tensors travel along as ``batch.carried``, so the library's model gets the inputs that it knows::

        skipper = Skipper(model, Random(0.5), batch_size=1024, to_batch=Columns(ids=["user", "item"], label="clicked"))
        for batch in skipper(loader):
            loss = train_step(batch.carried)

    A batch is a mapping of names to tensors ``[B, ...]``, an object with such a mapping as ``interaction`` (RecBole's),
    or a tuple or list of tensors, whose names are ``"0"``, ``"1"``, …

    Args:
        ids: Names of the columns that hold row ids, ``[B]`` or ``[B, n]``, in the order of the model's tables where the
            policy tells tables apart by their column (``slipstream`` does). Any dtype, below 2^31: 64-bit hashes are
            no rows.
        label: Name of the column of labels, ``[B]`` or ``[B, 1]``; None: all 1, as in logs of positives.
        dense: Names of columns of numbers.
        index: Name of a column of sample numbers. None: numbered as they pass in an epoch, which is enough unless the
            decisions are to be the same in another order of the samples.
        time: Name of a column of unix seconds, or None.
    """

    def __init__(
        self,
        ids: Sequence[str],
        label: str | None = None,
        *,
        dense: Sequence[str] = (),
        index: str | None = None,
        time: str | None = None,
    ) -> None:
        if isinstance(ids, str):
            raise ConfigError(f"ids must be a list of names, not the text {ids!r}")
        self.ids, self.label, self.dense, self.index, self.time = tuple(ids), label, tuple(dense), index, time
        self._passed = 0

    def __call__(self, batch: Any, first: int | None = None) -> Batch:
        """A batch of what the loader yielded.

        Args:
            batch: A batch of the loader.
            first: Number of its first sample, as the Skipper counts in each epoch; None: numbered as they pass here.

        Raises:
            ConfigError: A column is missing, or columns have different numbers of samples.
            IndexOutOfRange: An id is not in int32's range.
        """
        columns = _columns(batch)
        wanted = [*self.ids, *self.dense, *(name for name in (self.label, self.index, self.time) if name is not None)]
        if missing := [name for name in wanted if name not in columns]:
            raise ConfigError(f"the batch has no column {missing[0]!r}", remedy=f"use names of {list(columns)}")
        sizes = {name: column.shape[0] if column.dim() else -1 for name, column in columns.items()}
        size = sizes[wanted[0]] if wanted else next(iter(sizes.values()))
        if uneven := [name for name, other in sizes.items() if other != size]:
            raise ConfigError(f"column {uneven[0]!r} has {sizes[uneven[0]]} samples, the others {size}")

        def joined(names: Sequence[str], dtype: torch.dtype) -> Tensor:
            if not names:
                return torch.empty(size, 0, dtype=dtype)
            return torch.cat([_flat(columns[name]).to(dtype) for name in names], dim=1)

        def one(name: str, dtype: torch.dtype) -> Tensor:
            return columns[name].detach().reshape(size).to(dtype)

        first = self._passed if first is None else first
        ids = joined(self.ids, torch.int64)
        narrow = ids.to(torch.int32)
        unsigned = any(columns[name].dtype == torch.uint64 for name in self.ids)
        if not torch.equal(narrow.to(torch.int64), ids) or unsigned:
            for name in self.ids:
                _check_ids(name, columns[name], first)
        self._passed += size
        return Batch(
            inputs=Inputs(joined(self.dense, torch.float32), narrow),
            labels=torch.ones(size) if self.label is None else one(self.label, torch.float32),
            index=torch.arange(first, first + size) if self.index is None else one(self.index, torch.int64),
            weights=torch.ones(size),
            time=None if self.time is None else one(self.time, torch.int64),
            carried=columns,
        )


def _flat(column: Tensor) -> Tensor:
    column = column.detach()
    return column.flatten(1) if column.dim() > 1 else column.unsqueeze(1)


def _check_ids(name: str, ids: Tensor, passed: int) -> None:
    """Raise IndexOutOfRange for ids that int32 would wrap around."""
    wide = ids.to(torch.int64)
    wrong = (wide < (0 if ids.dtype == torch.uint64 else _INT32.min)) | (wide > _INT32.max)
    wrong = _flat(wrong).any(1)
    if not bool(wrong.any()):
        return
    sample = int(wrong.nonzero()[0])
    raise IndexOutOfRange(
        f"column {name!r}, sample {passed + sample} of those that passed: {ids[sample].flatten()[:3].tolist()} "
        "is no row of a table",
        remedy="use row numbers below 2^31, as hash % rows",
    )


def _columns(batch: Any) -> dict[str, Tensor]:
    """The tensors of a batch by name."""
    batch = getattr(batch, "interaction", batch)
    if isinstance(batch, Mapping):
        columns = {str(name): column for name, column in batch.items()}
    elif isinstance(batch, tuple | list):
        columns = {str(position): column for position, column in enumerate(batch)}
    else:
        columns = {"0": batch}
    if other := [name for name, column in columns.items() if not isinstance(column, Tensor)]:
        raise ConfigError(f"column {other[0]!r} of the batch is a {type(columns[other[0]]).__name__}, not a tensor")
    return columns
