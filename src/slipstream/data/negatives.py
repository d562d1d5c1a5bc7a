"""Negative samples for data that holds only positives (clicks, check-ins, purchases)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from slipstream.data.names import NegativeMethod

_TRIES = 32
_GOLDEN, _MUL1, _MUL2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_U30, _U27, _U31, _U32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)


class NegativeOptions(BaseModel):
    """How negatives are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_positive: int = Field(ge=0, le=1000)
    """Negatives after each positive."""
    method: NegativeMethod = "recent"
    """recent: the item of one of the preceding positives, so that it was on show at that moment. uniform: any item.
    popularity: any item, with a chance proportional to (its positives)^0.75."""
    window: int = Field(default=3000, ge=1)
    """Preceding positives to draw from (recent)."""
    seed: int = Field(default=0, ge=0)


@numba.njit(cache=True, nogil=True)
def _mixed(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> _U30)) * _MUL1
    h = (h ^ (h >> _U27)) * _MUL2
    return h ^ (h >> _U31)


@numba.njit(cache=True, nogil=True)
def _random(seed: np.uint64, positive: int, negative: int, attempt: int) -> np.uint64:
    # splitmix64 over a counter: a draw depends on nothing but its own numbers.
    h = seed
    for part in (np.uint64(positive), np.uint64(negative * 64 + attempt)):
        h = _mixed((h ^ part) + _GOLDEN)
    return h


@numba.njit(cache=True, nogil=True)
def _recent(items: Any, start: int, seed: np.uint64, window: int, out: Any) -> None:
    for i in range(out.shape[0]):
        position = start + i
        reach = min(position, window)
        for j in range(out.shape[1]):
            out[i, j] = -1
            for attempt in range(_TRIES if reach else 0):
                back = np.int64(_random(seed, position, j, attempt) % np.uint64(reach))
                drawn = items[position - 1 - back]
                if drawn != items[position]:
                    out[i, j] = drawn
                    break


@numba.njit(cache=True, nogil=True)
def _any_item(
    items: Any, users: Any, start: int, seed: np.uint64, known: Any, mass: Any, num_rows: int, out: Any
) -> None:
    for i in range(out.shape[0]):
        position = start + i
        user = np.uint64(users[position]) << _U32
        for j in range(out.shape[1]):
            out[i, j] = -1
            for attempt in range(_TRIES):
                bits = _random(seed, position, j, attempt)
                if mass.size:
                    share = np.float64(bits >> np.uint64(11)) / 9007199254740992.0
                    drawn = np.searchsorted(mass, share * mass[-1], side="right")
                else:
                    drawn = 1 + np.int64(bits % np.uint64(num_rows - 1))
                key = user | np.uint64(drawn)
                at = np.searchsorted(known, key)
                if drawn != items[position] and (at == known.size or known[at] != key):
                    out[i, j] = drawn
                    break


class NegativeDrawer:
    """Draws negatives for positives in time order. A positive's draws depend only on seed, stream and its position.

    A negative is never the clicked item; with ``uniform`` and ``popularity`` it is none of the user's positives
    either, nor row 0. Where 32 tries find none (the first click has no predecessor), there is none.

    Args:
        items: int32 ``[n]``, the item ids of all positives in order.
        users: int32 ``[n]``, their users; only looked at by ``uniform`` and ``popularity``.
        num_rows: Rows of the items' table.
        options: How to draw.
        stream: uint64, keeps slices of a log apart, whose positions all begin at 0.
        hashed: The items' table has rows that are no item: ``uniform`` draws any of the items that there are.
    """

    def __init__(
        self,
        items: npt.NDArray[np.int32],
        users: npt.NDArray[np.int32],
        num_rows: int,
        options: NegativeOptions,
        *,
        stream: int = 0,
        hashed: bool = False,
    ) -> None:
        self.options = options
        self._items, self._users, self._num_rows = items, users, num_rows
        # Mixed, since a seed that is 1 more would draw as this one does at the neighbouring positions.
        self._seed = _mixed(np.uint64(options.seed & 0xFFFFFFFFFFFFFFFF)) ^ np.uint64(stream)
        self._known = np.empty(0, dtype=np.uint64)
        self._mass = np.empty(0)
        if options.method != "recent":
            self._known = np.unique(users.astype(np.uint64) << _U32 | items.astype(np.uint64))
        if options.method == "popularity" or (options.method == "uniform" and hashed):
            counts = np.bincount(items, minlength=num_rows).astype(np.float64)
            counts[0] = 0
            self._mass = np.cumsum(counts > 0 if options.method == "uniform" else counts**0.75, dtype=np.float64)

    def draw(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        """Item ids for the positives ``start`` to ``stop``: int32 ``[m, per_positive]``, -1 where there is none."""
        out = np.full((stop - start, self.options.per_positive), -1, dtype=np.int32)
        if self.options.method == "recent":
            _recent(self._items, start, self._seed, self.options.window, out)
        elif self._num_rows > 1 and (not self._mass.size or self._mass[-1] > 0):
            _any_item(self._items, self._users, start, self._seed, self._known, self._mass, self._num_rows, out)
        return out

    def pieces(
        self, size: int
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
        """All samples, each positive followed by its negatives, ``size`` positives at a time.

        Yields:
            For ``m`` samples: the positive that each belongs to, int64 ``[m]``; its item, int32 ``[m]``; its label,
            float32 ``[m]``.
        """
        for start in range(0, self._items.size, size):
            stop = min(start + size, self._items.size)
            drawn = self.draw(start, stop)
            samples = np.concatenate([self._items[start:stop, None], drawn], axis=1)
            labels = np.zeros(samples.shape, dtype=np.float32)
            labels[:, 0] = 1
            there = samples >= 0
            positives = np.broadcast_to(np.arange(start, stop)[:, None], samples.shape)
            yield positives[there], samples[there], labels[there]
