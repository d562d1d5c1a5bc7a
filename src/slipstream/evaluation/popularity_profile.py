"""Popularity profile of a prepared data set: how skewed its accesses are, and how fast what is popular changes.

What ``slipstream inspect`` prints. Every skipping by popularity lives from the skew and suffers from the drift.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from slipstream.data.store import Store
from slipstream.errors import ConfigError
from slipstream.evaluation.popularity import count_rows
from slipstream.memory_left import check_memory_left

Counts = NDArray[np.int64]

_CHUNK = 1 << 20
"""Samples counted in one go."""

_FITTED_FROM = 10
"""Accesses from which on a row counts for the fitted exponent: below, ties make the curve a staircase."""


class RowProfile(BaseModel):
    """Accesses of one feature's rows, or of all rows together."""

    model_config = ConfigDict(frozen=True)

    name: str
    """The feature, or ``all``."""
    num_rows: int
    """Rows of the table, the out-of-vocabulary row included."""
    rows_seen: int
    """Rows with at least one access."""
    accesses: int
    """Lookups; a bag counts each of its ids."""
    unknown_share: float
    """Share of the accesses that go to the out-of-vocabulary row."""
    top_shares: dict[float, float]
    """Share of the table's rows (the most popular ones) → share of the accesses that they take."""
    gini: float
    """Gini coefficient of the accesses over all rows of the table: 0 even, near 1 all on one row."""
    zipf_exponent: float | None
    """Slope of log accesses over log rank, rows of 10 accesses or more; None with fewer than 10 such rows."""
    overlap: tuple[float, ...]
    """For each slice but the first: share of its top rows that were among the previous slice's top rows."""
    overlap_first_last: float
    """Share of the last slice's top rows that were among the first slice's."""
    new_rows: tuple[float, ...]
    """For each slice but the first: share of its distinct rows that no earlier slice held."""
    new_accesses: tuple[float, ...]
    """For each slice but the first: share of its accesses that go to such rows."""


class PopularityProfile(BaseModel):
    """Profile of a data set."""

    model_config = ConfigDict(frozen=True)

    num_samples: int
    """Samples looked at."""
    slice_starts: tuple[int, ...]
    """First sample of each slice; slices follow the order of the data, which is time where the data has time."""
    top_fraction: float
    """Share of a slice's seen rows that count as its top rows (at least one row), for the overlaps."""
    overall: RowProfile
    """All features' rows together."""
    features: tuple[RowProfile, ...]
    """Each feature, in the store's order."""


def popularity_profile(
    store: Store,
    *,
    slices: int = 10,
    top: Sequence[float] = (0.001, 0.01, 0.1),
    top_fraction: float = 0.01,
    start: int = 0,
    stop: int | None = None,
) -> PopularityProfile:
    """Counts accesses in one pass over the data. Memory: 16 bytes a row, 32 while the overall profile is made.

    Args:
        store: A prepared data set.
        slices: Slices of equal length, in the order of the data, between which drift is measured; 1 or more.
        top: Shares of the rows for :attr:`RowProfile.top_shares`, each in (0, 1]; at least one row is taken.
        top_fraction: Share of a slice's seen rows that count as its top rows, in (0, 1].
        start: First sample.
        stop: End of the range (exclusive), None: all.

    Raises:
        ConfigError: A setting is out of range, there are fewer samples than slices, or the memory does not suffice.
    """
    stop = store.num_samples if stop is None else stop
    if not 0 <= start < stop <= store.num_samples:
        what = f"the range must lie within [0, {store.num_samples}], got [{start}, {stop})"
        raise ConfigError(what, remedy="choose samples that the data has")
    if not 1 <= slices <= stop - start:
        what = f"slices must be in [1, {stop - start}] (the number of samples), got {slices}"
        raise ConfigError(what, remedy="choose a number in that range")
    for name, share in [("top", share) for share in top] + [("top_fraction", top_fraction)]:
        if not 0.0 < share <= 1.0:
            raise ConfigError(f"{name} must be in (0, 1], got {share}")
    bounds = np.linspace(start, stop, slices + 1).astype(np.int64)
    rows = [feature.num_rows for feature in store.features]
    remedy = "use a machine with more memory, or prepare the data with fewer rows (hash_rows)"
    check_memory_left(32 * sum(rows), f"counting the accesses of {sum(rows):,} rows", remedy=remedy)
    everything = slice(0, sum(rows))
    ends = np.cumsum(rows)
    places = [everything] + [slice(int(end) - count, int(end)) for end, count in zip(ends, rows, strict=True)]
    trackers = [_Drift(top_fraction) for _ in places]
    total = np.zeros(sum(rows), dtype=np.int64)
    for first, last in pairwise(bounds.tolist()):
        current = np.zeros_like(total)
        for feature, ids in _accesses(store, first, last):
            place = places[1 + feature]
            current[place] += count_rows(ids, rows[feature], store.features[feature].name, store.path)
        for tracker, place in zip(trackers, places, strict=True):
            tracker.add(current[place], total[place])
        total += current
        del current
    names = ["all", *(feature.name for feature in store.features)]
    firsts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    unknown = [int(total[firsts].sum()), *(int(total[place.start]) for place in places[1:])]
    profiles = [
        _profile(name, total[place], oov, tuple(top), tracker)
        for name, place, oov, tracker in zip(names, places, unknown, trackers, strict=True)
    ]
    return PopularityProfile(
        num_samples=stop - start,
        slice_starts=tuple(int(bound) for bound in bounds[:-1]),
        top_fraction=top_fraction,
        overall=profiles[0],
        features=tuple(profiles[1:]),
    )


def gini(counts: NDArray[np.integer]) -> float:
    """Gini coefficient of non-negative counts, 0 for none at all.

    Args:
        counts: [R].
    """
    total = float(counts.sum())
    if total == 0.0:
        return 0.0
    # Mean absolute difference by ranks: sum of (2i − R − 1) x_i over the sorted counts, over R times the sum.
    size = counts.size
    ranks = 2.0 * np.arange(1, size + 1) - size - 1.0
    return float(ranks @ np.sort(counts).astype(np.float64)) / (size * total)


class _Drift:
    """Follows one feature from slice to slice."""

    def __init__(self, top_fraction: float) -> None:
        self.top_fraction = top_fraction
        self.first: NDArray[np.int64] | None = None
        self.previous: NDArray[np.int64] | None = None
        self.overlap: list[float] = []
        self.new_rows: list[float] = []
        self.new_accesses: list[float] = []

    def add(self, current: Counts, before: Counts) -> None:
        """A slice's counts, and the counts of all slices before it."""
        seen = np.flatnonzero(current)
        size = max(1, round(self.top_fraction * seen.size))
        top = seen[np.argpartition(-current[seen], size - 1)[:size]] if seen.size else seen
        if self.previous is None:
            self.first = top
        else:
            self.overlap.append(_share_in(top, self.previous))
            fresh = seen[before[seen] == 0]
            self.new_rows.append(fresh.size / max(seen.size, 1))
            self.new_accesses.append(float(current[fresh].sum() / max(int(current.sum()), 1)))
        self.previous = top

    @property
    def overlap_first_last(self) -> float:
        if self.first is None or self.previous is None:
            return 1.0
        return _share_in(self.previous, self.first)


def _share_in(rows: NDArray[np.int64], others: NDArray[np.int64]) -> float:
    return float(np.isin(rows, others).mean()) if rows.size else 1.0


def _accesses(store: Store, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.integer]]]:
    """Position and ids of each feature, piece by piece."""
    one_hot = len(store.one_hot)
    for first in range(start, stop, _CHUNK):
        inputs = store.slice(first, min(first + _CHUNK, stop)).inputs
        columns = np.ascontiguousarray(inputs.ids.numpy().T)
        yield from enumerate(columns)
        yield from ((one_hot + place, bag.values.numpy()) for place, bag in enumerate(inputs.bags))


def _profile(name: str, counts: Counts, unknown: int, top: tuple[float, ...], drift: _Drift) -> RowProfile:
    accesses = int(counts.sum())
    falling = np.sort(counts)[::-1]
    shares = {share: int(falling[: max(1, round(share * counts.size))].sum()) / max(accesses, 1) for share in top}
    return RowProfile(
        name=name,
        num_rows=counts.size,
        rows_seen=int(np.count_nonzero(counts)),
        accesses=accesses,
        unknown_share=unknown / max(accesses, 1),
        top_shares=shares,
        gini=gini(counts),
        zipf_exponent=_zipf_exponent(falling),
        overlap=tuple(drift.overlap),
        overlap_first_last=drift.overlap_first_last,
        new_rows=tuple(drift.new_rows),
        new_accesses=tuple(drift.new_accesses),
    )


def _zipf_exponent(falling: Counts) -> float | None:
    ranks = int(np.searchsorted(-falling, -_FITTED_FROM, side="right"))
    if ranks < 10:
        return None
    # Ranks evenly spaced in the logarithm: else the many rows of the tail decide alone.
    chosen = np.unique(np.geomspace(1, ranks, 200).astype(np.int64))
    slope = np.polyfit(np.log(chosen), np.log(falling[chosen - 1].astype(np.float64)), 1)[0]
    return float(-slope)
