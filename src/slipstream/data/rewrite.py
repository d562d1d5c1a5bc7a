"""The last pass of preparing: encoded rows into time order, negatives between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from slipstream.data.batch import Batch
from slipstream.data.negatives import NegativeDrawer, NegativeOptions
from slipstream.data.schema import Schema
from slipstream.data.store import Store
from slipstream.data.writer import StoreWriter

_PIECE = 65_536


def time_order(store: Store) -> npt.NDArray[np.int64] | None:
    """The order in which time rises, int64 ``[N]``; samples of the same time stay in the order of the file."""
    return None if store.time is None else np.argsort(store.time.numpy(), kind="stable").astype(np.int64)


def rewrite(
    store: Store,
    writer: StoreWriter,
    order: npt.NDArray[np.int64] | None,
    negatives: NegativeOptions | None,
    schema: Schema,
    splits: Mapping[str, tuple[int, int]],
    report: Callable[[str, int], None],
    *,
    is_slice: bool = False,
    hashed: bool = False,
) -> dict[str, tuple[int, int]]:
    """Copies ``store`` into ``writer`` in ``order`` (None: as it is), with negatives after each sample.

    Those of a slice of a longer log (``is_slice``) are drawn apart from those of the others; where ids are ``hashed``,
    not all rows of a table are items.

    Returns:
        The named ranges ``splits`` of ``store``, as they lie in what was written.
    """
    if negatives is None or not negatives.per_positive or schema.item is None or schema.user is None:
        for start in range(0, store.num_samples, _PIECE):
            stop = min(start + _PIECE, store.num_samples)
            batch = store.slice(start, stop) if order is None else store.take(order[start:stop])
            _append(writer, batch, batch.inputs.ids.numpy(), batch.labels.numpy())
            report("write", stop)
        return dict(splits)
    names = [feature.name for feature in store.one_hot]
    item, user = names.index(schema.item), names.index(schema.user)
    ids = store.ids.numpy()
    chosen = slice(None) if order is None else order
    items, users = np.ascontiguousarray(ids[chosen, item]), np.ascontiguousarray(ids[chosen, user])
    stream = _stream_of(items, users) if is_slice else 0
    drawer = NegativeDrawer(items, users, store.one_hot[item].num_rows, negatives, stream=stream, hashed=hashed)
    bounds = sorted({bound for split in splits.values() for bound in split})
    moved = dict.fromkeys(bounds, 0)
    for positives, drawn, labels in drawer.pieces(_PIECE // (1 + negatives.per_positive)):
        batch = store.take(positives if order is None else order[positives])
        changed = batch.inputs.ids.numpy()
        changed[:, item] = drawn
        _append(writer, batch, changed, labels)
        for bound in bounds:
            moved[bound] += int((positives < bound).sum())
        report("write", int(positives[-1]) + 1)
    return {name: (moved[start], moved[stop]) for name, (start, stop) in splits.items()}


def _stream_of(*columns: npt.NDArray[np.int32]) -> int:
    """A number of the slice's own, uint64: that of its contents."""
    digest = blake2b(digest_size=8)
    for column in columns:
        digest.update(column.data)
    return int.from_bytes(digest.digest())


def _append(writer: StoreWriter, batch: Batch, ids: npt.NDArray[np.int32], labels: npt.NDArray[np.float32]) -> None:
    writer.append(
        ids,
        batch.inputs.dense.numpy(),
        labels,
        None if batch.time is None else batch.time.numpy(),
        [(bag.values.numpy(), bag.offsets.numpy()) for bag in batch.inputs.bags],
    )
