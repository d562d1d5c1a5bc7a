"""Draws and bags of inputs: the compiled code against plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.errors import ConfigError
from slipstream.kernels import hashing, inputs, registry

BITS = (1 << 64) - 1


def key_of(drawn: int, seed: int, step: int) -> int:
    """The key whose hash is ``drawn`` (unsigned 64 bits), signed: the mixer backwards."""
    for shift, factor in ((31, hashing.MIX_2), (27, hashing.MIX_1), (30, hashing.KEY_FACTOR)):
        mixed = drawn
        for _ in range(64 // shift):
            mixed = drawn ^ (mixed >> shift)
        if factor == hashing.KEY_FACTOR:
            mixed -= hashing.stream(step, seed)
        drawn = mixed * pow(factor, -1, 1 << 64) & BITS
    return hashing.signed(drawn)


@settings(deadline=None)  # the first example compiles
@given(
    keys=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(-(2**63), 2**63 - 1),
    step=st.integers(0, 2**40),
)
def test_draws_are_those_of_the_reference(keys: list[int], dtype: torch.dtype, seed: int, step: int) -> None:
    tensor = torch.tensor(keys, dtype=dtype)
    assert torch.equal(registry.hash_uniform(tensor, seed, step), hashing.hash_uniform(tensor, seed, step))
    every_second = torch.stack([tensor, tensor], dim=1)[:, 0]
    assert torch.equal(registry.hash_uniform(every_second, seed, step), hashing.hash_uniform(tensor, seed, step))


@settings(deadline=None)
@given(
    keys=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    count=st.integers(1, 9),
    num_rows=st.one_of(st.integers(1, 300), st.integers(1, 2**31)),
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 2**40),
)
def test_drawn_rows_are_those_of_the_reference(
    keys: list[int], dtype: torch.dtype, count: int, num_rows: int, seed: int, step: int
) -> None:
    tensor = torch.tensor(keys, dtype=dtype).repeat_interleave(2)[::2]
    found = registry.draw_rows(tensor, count, num_rows, seed, step)
    assert found.dtype == torch.int32
    assert torch.equal(found, hashing.draw_rows(tensor, count, num_rows, seed, step))
    assert torch.equal(found[:, :1], registry.draw_rows(tensor, 1, num_rows, seed, step))
    assert not found.numel() or min(1, num_rows - 1) <= int(found.min()) <= int(found.max()) < num_rows


@pytest.mark.parametrize("home", [hashing, inputs])
def test_every_row_of_a_table_beyond_24_bits_can_be_drawn(home: Any) -> None:
    num_rows = 2**31 - 1
    ends = torch.tensor([key_of(drawn, 3, 4) for drawn in (0, 1 << 34, (1 << 63) + (1 << 34), BITS)])
    assert home.draw_rows(ends, 1, num_rows, 3, 4).squeeze(1).tolist() == [1, 2, 2**30 + 1, num_rows - 1]
    drawn = home.draw_rows(torch.arange(10_000), 1, num_rows, 3, 4)
    assert (drawn % 128).unique().numel() == 128
    assert (drawn < 2**30).float().mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("home", [hashing, inputs])
def test_samples_beyond_32_bits_share_no_candidates(home: Any) -> None:
    keys = torch.arange(4) << 32
    drawn = home.draw_rows(keys, 4, 2**31, 5)
    assert drawn.unique().numel() == drawn.numel()


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=20),
    picks=st.lists(st.integers(0, 19), max_size=30),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_bags_of_any_inputs_in_any_order(lengths: list[int], picks: list[int], dtype: torch.dtype) -> None:
    starts = torch.tensor([0, *lengths]).cumsum(0)
    values = torch.arange(100, 100 + int(starts[-1]), dtype=dtype)
    rows = torch.tensor([pick % len(lengths) for pick in picks], dtype=torch.int64)
    out, offsets = inputs.select_bags(values, starts, rows)
    parts = [values[starts[row] : starts[row + 1]] for row in rows.tolist()]
    assert out.dtype == dtype
    assert out.tolist() == [int(value) for part in parts for value in part]
    assert offsets.tolist() == [0, *torch.tensor([len(part) for part in parts], dtype=torch.int64).cumsum(0).tolist()]


@pytest.mark.parametrize(("offsets", "row"), [([0, 2], 1), ([0, 2], -1), ([0, 9], 0), ([2, 1], 0), ([-1, 2], 0)])
def test_bags_outside_are_refused(offsets: list[int], row: int) -> None:
    with pytest.raises(IndexError, match="bags"):
        inputs.select_bags(torch.arange(3), torch.tensor(offsets), torch.tensor([row]))


def test_bags_of_another_dtype_are_refused() -> None:
    offsets, to_offsets = torch.tensor([0, 3]), torch.zeros(2, dtype=torch.int64)
    to_values = torch.empty(4, dtype=torch.int32)
    with pytest.raises(ConfigError, match=r"torch\.int64 and torch\.int32"):
        inputs.append_bags(torch.arange(3) << 40, offsets, torch.tensor([0]), to_values, to_offsets, 0)


@settings(deadline=None)
@given(
    size=st.integers(0, 40),
    chances=st.lists(st.sampled_from([0.0, 1.0]) | st.floats(0.0625, 0.9375, width=32), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    before=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    step=st.integers(0, 3),
)
def test_inputs_kept_and_their_weights(
    size: int, chances: list[float], dtype: torch.dtype, before: tuple[int, int], step: int
) -> None:
    keys = torch.arange(7, 7 + size, dtype=dtype)
    probability = torch.tensor(chances, dtype=torch.float32)[torch.arange(size) % len(chances)]
    weights = torch.arange(size) % 3 + 1.0
    kept, decided = min(before), max(before)
    rows, ours, dropped = registry.keep(keys, 5, step, probability, weights, kept, decided)
    expected = (hashing.hash_double(keys, 5, step) < probability.double()).nonzero().squeeze(1)
    assert torch.equal(rows, expected)
    assert dropped == int((probability == 0.0).sum())
    if rows.numel():
        share = (kept + rows.numel()) / (decided + size - dropped)
        assert torch.equal(ours[rows], weights[rows] * share / probability[rows])


@pytest.mark.parametrize("exponent", [24, 30, 50])
def test_a_rare_input_is_kept_as_seldom_as_it_should_be(exponent: int) -> None:
    """Of draws 0, 1, 2, … units those below the probability, 3 units, are kept, however small a unit is."""
    keys = torch.tensor([key_of(place << (64 - exponent), 5, 2) for place in range(8)])
    assert hashing.hash_double(keys, 5, 2).tolist() == [place * 2.0**-exponent for place in range(8)]
    rows, _, dropped = registry.keep(keys, 5, 2, torch.full((8,), 3 * 2.0**-exponent), torch.ones(8), 0, 0)
    assert rows.tolist() == [0, 1, 2] and dropped == 0


def test_none_are_kept_at_0_and_all_at_1() -> None:
    keys = torch.tensor([key_of(drawn, 5, 2) for drawn in (0, 1, BITS)])
    for probability, kept in ((0.0, []), (1.0, [0, 1, 2])):
        rows, _, dropped = registry.keep(keys, 5, 2, torch.full((3,), probability), torch.ones(3), 0, 0)
        assert rows.tolist() == kept and dropped == 3 - len(kept)
