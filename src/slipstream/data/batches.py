"""Batches of a store, in order or shuffled, with a position that can be saved and resumed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slipstream.data.batch import Batch
from slipstream.data.shuffle import BlockShuffle
from slipstream.errors import ConfigError

if TYPE_CHECKING:
    from slipstream.data.arrow import ArrowBatches
    from slipstream.data.store import Store

SLAB = 16_384
"""Samples the background thread gathers at a time: fewer, larger pieces cost the training thread less to take over."""


class BatchesState(TypedDict):
    """Position of :class:`Batches`, plain values only."""

    fingerprint: str
    start: int
    stop: int
    shuffle_seed: int | None
    epoch: int
    position: int


class Batches:
    """The samples ``start`` to ``stop`` of a store as batches; made by :meth:`Store.batches`.

    Iterating hands out the samples from ``position`` on. After a whole pass the next iteration begins anew, and
    shuffled batches then come in a new order (drawn from seed and ``epoch``). An iteration that was broken off is
    continued by the next one; :meth:`rewind` begins the pass again.

    In order, batches are views of the memory map, and the kernel is asked to read ahead. Shuffled, or with an ``order``
    of the caller's (which is not part of the saved position: give it again), a thread gathers
    the samples of the next batches into fresh memory, on one core and without the interpreter lock (see
    :class:`~slipstream.data.shuffle.BlockShuffle` for what the shuffle guarantees).
    """

    def __init__(
        self,
        store: Store,
        batch_size: int,
        *,
        start: int = 0,
        stop: int | None = None,
        shuffle_seed: int | None = None,
        order: Tensor | SampleOrder | None = None,
        drop_last: bool = False,
        prefetch: int = 2,
    ) -> None:
        stop = store.num_samples if stop is None else stop
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        if prefetch < 0:
            raise ConfigError(f"prefetch must not be negative, it is {prefetch}")
        if not 0 <= start <= stop <= store.num_samples:
            raise ConfigError(f"samples {start} to {stop} are not within the store's {store.num_samples}")
        if shuffle_seed is not None and shuffle_seed < 0:
            raise ConfigError(f"shuffle_seed must not be negative, it is {shuffle_seed}")
        if order is not None and shuffle_seed is not None:
            raise ConfigError("order and shuffle_seed exclude each other")
        self._order = None if order is None else _rows(order, stop - start)
        self.store = store
        self.batch_size = batch_size
        self.start, self.stop = start, stop
        self.shuffle_seed = shuffle_seed
        self.drop_last = drop_last
        self.prefetch = prefetch
        self.epoch = 0
        """Whole passes that have been handed out."""
        self.position = 0
        """Samples of this pass that have been handed out."""

    @staticmethod
    def from_arrow(
        source: Any,
        ids: Sequence[str],
        label: str | None,
        *,
        dense: Sequence[str] = (),
        bags: Sequence[str] = (),
        time: str | None = None,
        batch_size: int = 2048,
        drop_last: bool = False,
    ) -> ArrowBatches:
        """Batches of anything with ``__arrow_c_stream__``, as input of a Skipper; nothing is copied to disk.

        Arrow tables and readers, Polars and pandas frames, DuckDB relations, and Hugging Face datasets. Samples
        are numbered from 0 in the order of the source. Values must be row ids already.

        Args:
            source: Where the samples come from; tables can be iterated again, readers once.
            ids: Columns of row ids (integers of 0 to 2^31 − 1), one for each one-hot feature.
            label: Column of labels; None: all 1.
            dense: Columns of numbers.
            bags: Columns of lists of row ids.
            time: Column of unix seconds, or of timestamps.
            batch_size: Samples of a batch.
            drop_last: Leave out the last batch if it is smaller.

        Raises:
            ConfigError: The source has no stream, or ``batch_size`` is below 1.
            DataError: While iterating: a column is missing or of a wrong type, a value is missing or no row id; says
                which, and the row.
        """
        from slipstream.data.arrow import ArrowBatches  # a training on a store needs no Arrow: 40 MB

        return ArrowBatches(
            source, ids, label, dense=dense, bags=bags, time=time, batch_size=batch_size, drop_last=drop_last
        )

    def __len__(self) -> int:
        """Batches of a whole pass."""
        samples = self.stop - self.start
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self._at_end():
            self.epoch += self.position > 0
            self.position = 0
        order = self._order
        if order is not None:
            return self._gathered(lambda first, last: order[first:last])
        if self.shuffle_seed is not None:
            return self._gathered(BlockShuffle(self.stop - self.start, self.shuffle_seed, self.epoch).rows)
        return self._in_order()

    def rewind(self) -> None:
        """Begins the current pass again."""
        self.position = 0

    def state_dict(self) -> BatchesState:
        """Where the iteration stands, after the last batch that was handed out."""
        return BatchesState(
            fingerprint=self.store.fingerprint,
            start=self.start,
            stop=self.stop,
            shuffle_seed=self.shuffle_seed,
            epoch=self.epoch,
            position=self.position,
        )

    def load_state_dict(self, state: BatchesState) -> None:
        """Continues where ``state`` was taken; the batch size may differ.

        Raises:
            ConfigError: The state belongs to other data, another range or another shuffle.
        """
        mine = self.state_dict()
        for key in ("fingerprint", "start", "stop", "shuffle_seed"):
            if state[key] != mine[key]:
                raise ConfigError(f"cannot resume: {key} was {state[key]}, now it is {mine[key]}")
        if not 0 <= state["position"] <= self.stop - self.start or state["epoch"] < 0:
            raise ConfigError(f"cannot resume at position {state['position']} of epoch {state['epoch']}")
        self.epoch, self.position = state["epoch"], state["position"]

    def _at_end(self) -> bool:
        left = self.stop - self.start - self.position
        return left < self.batch_size if self.drop_last else left == 0

    def _in_order(self) -> Iterator[Batch]:
        ahead = max(self.prefetch * self.batch_size, 4 * SLAB if self.prefetch else 0)
        advised = self.start + self.position
        while not self._at_end():
            first = self.start + self.position
            last = min(first + self.batch_size, self.stop)
            if ahead and advised < self.stop and advised < last + ahead // 2:
                upto = min(last + ahead, self.stop)
                self.store.read_ahead(advised, upto)
                advised = upto
            batch = self.store.slice(first, last)
            self.position += last - first
            yield batch

    def _gathered(self, rows: Callable[[int, int], npt.NDArray[np.int64]]) -> Iterator[Batch]:
        slab = self.batch_size * max(1, SLAB // self.batch_size)

        def gather(position: int) -> Batch:
            return self.store.take(rows(position, min(position + slab, self.stop - self.start)) + self.start)

        pending = range(self.position, self.stop - self.start, slab)
        if not self.prefetch:
            for position in pending:
                yield from self._pieces(gather(position))
            return
        # One worker: torch's operators would start a second OpenMP pool from here, so the store gathers with numpy, on
        # this thread alone.
        with ThreadPoolExecutor(1, thread_name_prefix="slipstream-prefetch") as pool:
            queue: deque[Future[Batch]] = deque()
            try:
                for position in pending:
                    queue.append(pool.submit(gather, position))
                    if len(queue) > self.prefetch:
                        yield from self._pieces(queue.popleft().result())
                while queue:
                    yield from self._pieces(queue.popleft().result())
            finally:
                for future in queue:
                    future.cancel()

    def _pieces(self, slab: Batch) -> Iterator[Batch]:
        for first in range(0, len(slab), self.batch_size):
            piece = slab.narrow(first, min(first + self.batch_size, len(slab)))
            if self.drop_last and len(piece) < self.batch_size:
                return
            self.position += len(piece)
            yield piece


@dataclass(frozen=True, slots=True)
class SampleOrder:
    """An order that :func:`checked_order` has passed."""

    rows: npt.NDArray[np.int64]
    """[N], each number from 0 to N - 1 once."""


def checked_order(order: Tensor, samples: int, *, what: str = "order", remedy: str | None = None) -> SampleOrder:
    """An order of the samples 0 … ``samples`` - 1.

    Args:
        order: What is said to be one.
        samples: N.
        what: What it came from, for the error.
        remedy: What to do else, for the error.

    Raises:
        ConfigError: It is not int64 [N], or does not name each of them once; says which it lacks.
    """
    rule = f"{what} must be int64 [{samples}], each number from 0 to {samples - 1} once"
    if not isinstance(order, Tensor):
        raise ConfigError(f"{rule}; it is a {type(order).__name__}", remedy=remedy)
    if order.dtype != torch.int64 or order.shape != (samples,):
        found = f"{str(order.dtype).removeprefix('torch.')} {list(order.shape)}"
        raise ConfigError(f"{rule}; it is {found}", remedy=remedy)
    if samples and (int(order.min()) < 0 or int(order.max()) >= samples):
        raise ConfigError(f"{rule}; it has numbers from {int(order.min())} to {int(order.max())}", remedy=remedy)
    left_out = torch.ones(samples, dtype=torch.bool)
    left_out[order] = False
    if left_out.any():
        first = int(left_out.to(torch.uint8).argmax())
        raise ConfigError(
            f"{rule}; it leaves {int(left_out.sum()):,} out, number {first} the first, and names others twice",
            remedy=remedy,
        )
    return SampleOrder(order.numpy())


def _rows(order: Tensor | SampleOrder, samples: int) -> npt.NDArray[np.int64]:
    """The order of so many samples; one that was checked for as many is not checked again."""
    if isinstance(order, SampleOrder):
        if len(order.rows) == samples:
            return order.rows
        order = torch.from_numpy(order.rows)
    return checked_order(order, samples).rows
