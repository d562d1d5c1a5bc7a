from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.errors import ConfigError, IndexOutOfRange
from slipstream.staleness import PopularitySketch


def test_counts_by_hand_across_tables() -> None:
    sketch = PopularitySketch([4, 3], None)
    sketch.add(0, torch.tensor([0, 0, 3, 0], dtype=torch.int32))
    sketch.add(1, torch.tensor([[0, 2], [2, 2]])[:, 1])
    sketch.add(1, torch.empty(0, dtype=torch.int64))
    heavy = sketch.heavy()
    assert heavy.tables.tolist() == [0, 1, 0]
    assert heavy.rows.tolist() == [0, 2, 3]
    assert heavy.estimates.tolist() == [3, 2, 1]
    assert sketch.estimate(0, torch.tensor([[0, 1], [2, 3]])).tolist() == [[3, 0], [0, 1]]
    assert sketch.total == 6
    assert sketch.eps == pytest.approx(math.e / 2**18)
    assert sketch.delta == pytest.approx(math.exp(-4))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 39)), max_size=300),
    st.integers(1, 40),
    st.integers(1, 5),
    st.sampled_from([torch.int32, torch.int64]),
)
def test_an_estimate_is_never_below_the_truth(
    accesses: list[tuple[int, int]], width: int, depth: int, dtype: torch.dtype
) -> None:
    sketch = PopularitySketch([40, 40], None, width=width, depth=depth, heavy=8)
    truth = torch.zeros(2, 40, dtype=torch.float64)
    for table, row in accesses:
        sketch.add(table, torch.tensor([row], dtype=dtype))
        truth[table, row] += 1
    estimates = torch.stack([sketch.estimate(table, torch.arange(40)) for table in range(2)])
    assert bool((estimates >= truth).all())
    assert bool((estimates <= truth.sum()).all())
    assert sketch.total == len(accesses)
    heavy = sketch.heavy()
    assert bool((heavy.estimates >= truth[heavy.tables, heavy.rows]).all())
    assert heavy.rows.numel() == min(8, int((truth > 0).sum())) or heavy.rows.numel() <= 8


def test_the_error_is_within_the_bound() -> None:
    rows, width, depth = 100_000, 1_000, 5
    ids = (rows * torch.rand(200_000, generator=torch.Generator().manual_seed(1)) ** 4).long()
    sketch = PopularitySketch([rows], None, width=width, depth=depth, heavy=512)
    sketch.add(0, ids)
    truth = torch.bincount(ids, minlength=rows)
    error = sketch.estimate(0, torch.arange(rows)) - truth
    too_high = float((error > sketch.eps * sketch.total).float().mean())
    assert float(error.min()) >= 0
    assert too_high <= sketch.delta
    top = set(truth.argsort(descending=True)[:100].tolist())
    assert len(top & set(sketch.heavy().rows[:130].tolist())) >= 95


def test_lookups_fade_and_scaling_back_changes_nothing() -> None:
    sketch = PopularitySketch([4], 2.0)
    sketch.add(0, torch.tensor([1] * 8))
    for _ in range(6):
        sketch.advance(1.0)
    assert sketch.estimate(0, torch.tensor([1])).item() == pytest.approx(1.0)
    sketch.add(0, torch.tensor([2]))
    sketch.advance(100.0)
    assert sketch.increment == 1.0
    assert sketch.heavy().estimates.tolist() == pytest.approx([2.0**-50] * 2)
    assert sketch.total == pytest.approx(2.0**-49)


def test_memory_does_not_depend_on_the_rows() -> None:
    small, large = PopularitySketch([10], None, width=64, heavy=16), PopularitySketch([2**39], None, width=64, heavy=16)
    for name in ("counters", "keys", "estimates"):
        assert getattr(small, name).shape == getattr(large, name).shape
    large.add(0, torch.tensor([2**39 - 1]))
    assert large.heavy().rows.tolist() == [2**39 - 1]


def test_ids_outside_are_refused_and_the_others_counted() -> None:
    sketch = PopularitySketch([4], None)
    with pytest.raises(IndexOutOfRange, match="2 ids are outside a table of 4 rows"):
        sketch.add(0, torch.tensor([-1, 4, 3]))
    assert sketch.total == 1


def test_state_round_trip() -> None:
    one, two = (PopularitySketch([50], 3.0, width=32, heavy=8, seed=seed) for seed in (1, 2))
    one.add(0, torch.arange(50))
    one.advance(2)
    two.load_state_dict(one.state_dict())
    for sketch in (one, two):
        sketch.add(0, torch.tensor([7, 7, 49]))
    assert torch.equal(one.estimate(0, torch.arange(50)), two.estimate(0, torch.arange(50)))
    assert all(torch.equal(a, b) for a, b in zip(one.heavy(), two.heavy(), strict=True))
    with pytest.raises(ConfigError, match=r"sketch \(counters\) is .* sketch_width"):
        PopularitySketch([50], 3.0, width=33, heavy=8).load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"width": 0}, "width must be in"), ({"depth": 17}, "depth must be in"), ({"heavy": 7}, "heavy must be in")],
)
def test_sizes_out_of_range(setting: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PopularitySketch([4], None, **setting)
    with pytest.raises(ConfigError, match="half_life must be in"):
        PopularitySketch([4], 0.0)
