"""Which rows are on the card: each once, and never one that is needed leaves."""

from __future__ import annotations

import numpy as np
import pytest

from slipstream.embedding.row_index import RowIndex, number_rows


def brought(index: RowIndex, keys: np.ndarray) -> np.ndarray:
    """As a cache does it; slots of the distinct rows that found room."""
    here, missing = index.split(keys)
    free, leaving = index.room(missing.size)
    new = np.concatenate([free, leaving])
    index.leave(leaving)
    index.enter(missing[: new.size], new)
    return np.concatenate([here, new])


@pytest.mark.parametrize("slots", [12, 40, 200])
def test_rows_and_slots_stay_each_others_inverse_and_needed_rows_stay(slots: int) -> None:
    rng = np.random.default_rng(0)
    index, held = RowIndex(200, slots, half_life=20.0), np.empty(0, np.int64)
    for step in range(200):
        keys = (200 * rng.random(min(slots, 15) // 3) ** 3).astype(np.int64)
        rows = brought(index, np.concatenate([keys, keys]))
        assert set(index.key_of[rows]) == set(keys) and rows.size == np.unique(keys).size
        assert (index.slot_of[held] >= 0).all(), "a row that was held left"
        index.count(rows)
        if step % 2:
            index.let_go()
            held = np.empty(0, np.int64)
        index.hold(rows)
        held = np.concatenate([held, np.unique(keys)])
        full = np.flatnonzero(index.key_of >= 0)
        assert (index.slot_of[index.key_of[full]] == full).all()
        assert np.count_nonzero(index.slot_of >= 0) == full.size


def test_the_least_popular_leave_and_are_remembered() -> None:
    index = RowIndex(10, 3, half_life=1e9)
    for keys in ([0, 1, 2], [0, 1], [0]):
        index.count(brought(index, np.array(keys)))
    for new, gone in ((3, 2), (4, 3)):  # seen once each; then row 1, seen twice
        index.count(brought(index, np.array([new])))
        assert index.slot_of[gone] == -1 and index.slot_of[0] >= 0
    for key in (3, 3, 3):  # what it was seen before counts when it comes back
        index.count(brought(index, np.array([key])))
    index.count(brought(index, np.array([5])))
    assert index.slot_of[3] >= 0 and index.slot_of[0] >= 0 and index.slot_of[1] == -1


def test_what_finds_no_room_is_left_out_and_leaves_no_trace() -> None:
    index = RowIndex(10, 2, half_life=10.0)
    index.hold(brought(index, np.array([0])))
    assert brought(index, np.array([4, 5, 6])).size == 1
    assert index.slot_of[4] >= 0 and (index.slot_of[[5, 6]] == -1).all() and index.slot_of[0] >= 0
    index.clear()
    assert (index.slot_of == -1).all() and brought(index, np.array([7, 8])).size == 2


def test_ids_become_keys() -> None:
    out = np.empty(3, np.int64)
    assert number_rows(np.array([0, 4, 2], np.int32), 5, 100, out) == -1 and out.tolist() == [100, 104, 102]
    assert number_rows(np.array([0, 5, -1]), 5, 100, out) == 1


def test_held_rows_stay_when_all_others_leave_and_every_slot_is_used_again() -> None:
    index = RowIndex(20, 6, half_life=10.0)
    brought(index, np.array([0, 1, 2, 3]))
    index.hold(brought(index, np.array([1, 3])))
    index.clear(keep_held=True)
    assert set(np.flatnonzero(index.slot_of >= 0)) == {1, 3} and set(index.holding()) == set(index.slot_of[[1, 3]])
    rows = brought(index, np.array([10, 11, 12, 13, 14]))
    assert rows.size == 4 and np.unique(index.slot_of[[1, 3, 10, 11, 12, 13]]).size == 6
    index.resize(2)
    assert (index.slot_of == -1).all() and brought(index, np.array([7, 8])).size == 2
