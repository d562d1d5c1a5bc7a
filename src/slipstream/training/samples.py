"""The training samples of a store, as policies may read them before training; batches with a look ahead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from slipstream.data.batch import Batch
from slipstream.data.batches import SampleOrder, checked_order
from slipstream.data.store import Store
from slipstream.policies import Skipper


class StoredSamples:
    """The samples ``start`` to ``stop`` of a store; positions count from ``start``.

    Args:
        store: The data.
        start: First sample.
        stop: First sample that no longer belongs.
        batch_size: Samples of a step.
    """

    def __init__(self, store: Store, start: int, stop: int, batch_size: int) -> None:
        self._store, self._start, self._stop = store, start, stop
        self._batch_size = batch_size

    @property
    def num_samples(self) -> int:
        """N."""
        return self._stop - self._start

    @property
    def batch_size(self) -> int:
        """Samples of a step."""
        return self._batch_size

    def take(self, positions: Tensor) -> Batch:
        """The samples at ``positions``, int64 [K], any order."""
        return self._store.take((positions + self._start).numpy())

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All of them, in order."""
        return iter(self._store.batches(batch_size, start=self._start, stop=self._stop))


def planned_order(skipper: Skipper, samples: StoredSamples) -> SampleOrder | None:
    """The order that a policy plans; None: it leaves it.

    Raises:
        ConfigError: What it plans is not each sample once.
    """
    order = skipper.plan(samples)
    if order is None:
        return None
    remedy = "to leave samples out, give them a keep_probability of 0, or plan runs (plans_runs)"
    return checked_order(
        order, samples.num_samples, what=f"policy {skipper.policy.name!r}: what plan returns", remedy=remedy
    )


def with_next(batches: Iterable[Batch]) -> Iterator[tuple[Batch, Batch | None]]:
    """Each batch with the one after it, or None after the last."""
    iterator = iter(batches)
    batch = next(iterator, None)
    while batch is not None:
        following = next(iterator, None)
        yield batch, following
        batch = following
