"""Which rows of the tables in host memory are on the card, how popular each is, and which leave first."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Keys = npt.NDArray[np.int64]
Slots = npt.NDArray[np.int64]

_RESCALE_AT = 2.0**40
_RANKED = 8
"""A ranking of the rows that may leave covers one in so many of the card's: ranking takes as long as many steps."""


@njit(cache=True, nogil=True)
def number_rows(ids: npt.NDArray[np.integer], rows: int, base: int, out: Keys) -> int:
    """Writes ``base`` + each id to ``out``; returns the first position whose id is outside 0 … ``rows`` - 1, or -1."""
    for at in range(ids.size):
        row = np.int64(ids[at])
        if row < 0 or row >= rows:
            return at
        out[at] = base + row
    return -1


@njit(cache=True, nogil=True)
def _split(
    keys: Keys, slot_of: npt.NDArray[np.int32], touched: Keys, now: int, here: Slots, missing: Keys
) -> tuple[int, int]:
    """Each row once, in the order of its first lookup: the slots of those on the card, the keys of the others."""
    found = absent = 0
    for key in keys:
        slot = slot_of[key]
        if slot >= 0:
            if touched[slot] != now:
                touched[slot] = now
                here[found] = slot
                found += 1
        elif slot == -1:
            slot_of[key] = -2
            missing[absent] = key
            absent += 1
    for at in range(absent):
        slot_of[missing[at]] = -1
    return found, absent


@njit(cache=True, nogil=True)
def _take(ranked: Slots, begin: int, touched: Keys, ranked_at: int, out: Slots) -> tuple[int, int]:
    """Slots from a ranking that nobody touched since; how many were found, and where the ranking goes on."""
    found = 0
    while begin < ranked.size and found < out.size:
        if touched[ranked[begin]] < ranked_at:
            out[found] = ranked[begin]
            found += 1
        begin += 1
    return found, begin


class Split(NamedTuple):
    """The distinct rows of some lookups."""

    here: Slots
    """Slots of those on the card."""
    missing: Keys
    """Keys of the others."""


class RowIndex:
    """R rows, S slots.

    Args:
        rows: R.
        slots: S.
        half_life: Batches after which an access counts half.

    Attributes:
        slot_of: int32 [R], -1 for rows that are not on the card.
        key_of: int64 [S], -1 for slots that hold none.
    """

    def __init__(self, rows: int, slots: int, half_life: float) -> None:
        self.slot_of = np.full(rows, -1, np.int32)
        self._growth = 2.0 ** (1.0 / half_life)
        self._increment = 1.0
        self._scores = np.zeros(rows, np.float32)  # of rows that are not on the card
        self._now = 0  # counts splits
        self._hold = 1
        self._make_slots(slots)

    def _make_slots(self, slots: int) -> None:
        self.slots = slots
        self.key_of = np.full(slots, -1, np.int64)
        self._card_scores = np.zeros(slots, np.float32)
        self._free: Slots = np.arange(slots)  # slots without a row, at its end as many as there still are
        self._filled = 0
        self._touched = np.zeros(slots, np.int64)
        self._held = np.zeros(slots, np.int64)
        self._ranked: Slots = np.empty(0, np.int64)  # slots that may leave, the least popular first
        self._place, self._ranked_at = 0, 0

    def split(self, keys: Keys) -> Split:
        """The distinct rows of lookups; those on the card stay there until the next call."""
        self._now += 1
        here, missing = np.empty(min(keys.size, self.slots), np.int64), np.empty(keys.size, np.int64)
        found, absent = _split(keys, self.slot_of, self._touched, self._now, here, missing)
        return Split(here[:found], missing[:absent])

    def room(self, count: int) -> tuple[Slots, Slots]:
        """Slots for at most so many rows: free ones, and those of the least popular rows that may leave."""
        free = self._free[self._free.size - (self.slots - self._filled) :][:count]
        leaving = np.empty(count - free.size, np.int64)
        found, self._place = _take(self._ranked, self._place, self._touched, self._ranked_at, leaving)
        if found < leaving.size:
            self._rank(leaving.size - found, leaving[:found])
            more, self._place = _take(self._ranked, self._place, self._touched, self._ranked_at, leaving[found:])
            found += more
        return free, leaving[:found]

    def leave(self, leaving: Slots) -> None:
        """Takes rows from the card."""
        keys = self.key_of[leaving]
        self._scores[keys] = self._card_scores[leaving]
        self.slot_of[keys], self.key_of[leaving] = -1, -1
        self._filled -= leaving.size

    def enter(self, keys: Keys, slots: Slots) -> None:
        """Puts rows into slots that hold none."""
        self.slot_of[keys], self.key_of[slots] = slots, keys
        self._card_scores[slots] = self._scores[keys]
        self._touched[slots] = self._now
        self._filled += slots.size

    def count(self, slots: Slots) -> None:
        """Counts a batch's access of each of these rows."""
        self._card_scores[slots] += np.float32(self._increment)
        self._increment *= self._growth
        if self._increment > _RESCALE_AT:
            for scores in (self._scores, self._card_scores):
                scores *= np.float32(1.0 / self._increment)
            self._increment = 1.0

    def hold(self, slots: Slots) -> None:
        """Keeps rows from leaving, beside those that are held already, until :meth:`let_go`."""
        self._held[slots] = self._hold

    def holding(self) -> Slots:
        """The rows that are held."""
        return np.flatnonzero(self._held == self._hold)

    def let_go(self) -> None:
        """Ends all holding."""
        self._hold += 1

    def clear(self, *, keep_held: bool = False) -> None:
        """Takes every row from the card, or every one that is not held."""
        leaving = self.key_of >= 0
        if keep_held:
            leaving &= self._held != self._hold
        else:
            self.let_go()
        self.leave(np.flatnonzero(leaving))
        self._free = np.flatnonzero(self.key_of < 0)
        self._ranked, self._place = np.empty(0, np.int64), 0

    def resize(self, slots: int) -> None:
        """Takes every row from the card, which holds ``slots`` from now on; what is popular is remembered."""
        self.clear()
        self._make_slots(slots)

    def _rank(self, least: int, taken: Slots) -> None:
        may = (self.key_of >= 0) & (self._touched != self._now) & (self._held != self._hold)
        may[taken] = False
        candidates = np.flatnonzero(may)
        count = min(max(least, self.slots // _RANKED), candidates.size)
        scores = self._card_scores[candidates]
        if count < candidates.size:
            chosen = np.sort(np.argpartition(scores, count)[:count])
            candidates, scores = candidates[chosen], scores[chosen]
        # A stable sort: ties go by the slot, so that a run repeats.
        self._ranked = candidates[np.argsort(scores, kind="stable")]
        self._place, self._ranked_at = 0, self._now
