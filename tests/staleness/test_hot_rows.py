"""Hot rows, displacement and the threshold, by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slipstream.data.batch import Bag, Inputs
from slipstream.errors import ConfigError
from slipstream.staleness.displacement import Displacement, bisect_threshold
from slipstream.staleness.hot_rows import add_accesses, check_hot_bytes, hot_inputs, rows_within, top_rows
from slipstream.staleness.popularity import ExactCounts
from slipstream.staleness.stale_inputs import HotSnapshot, Rule, stale_inputs

INPUTS = Inputs(
    torch.empty(3, 0),
    torch.tensor([[0, 1], [0, 2], [1, 2]], dtype=torch.int32),
    (Bag(torch.tensor([1, 1, 0], dtype=torch.int32), torch.tensor([0, 2, 2, 3])),),
)


def marks(*rows: list[int]) -> list[torch.Tensor]:
    return [torch.tensor(row, dtype=torch.uint8) for row in rows]


def test_accesses_are_counted_per_row_over_all_tables() -> None:
    counts = [ExactCounts(2), ExactCounts(3), ExactCounts(2)]
    add_accesses(counts, INPUTS)
    assert [count.scores.tolist() for count in counts] == [[2, 1], [0, 1, 2], [1, 2]]


def test_the_top_rows_of_all_tables_with_ties_in_order() -> None:
    scores = [torch.tensor([2, 1]), torch.tensor([0, 1, 2]), torch.tensor([1, 2])]
    # 2 is held by three rows; of those that hold 1, the first in table order is taken.
    assert [mark.tolist() for mark in top_rows(scores, 4)] == [[1, 1], [0, 0, 1], [0, 1]]
    assert [mark.tolist() for mark in top_rows(scores, 2)] == [[1, 0], [0, 0, 1], [0, 0]]
    assert [mark.tolist() for mark in top_rows(scores, 99)] == [[1, 1], [1, 1, 1], [1, 1]]


SCORES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=3)


@given(scores=SCORES, k=st.integers(0, 20))
def test_top_rows_are_k_and_none_outside_is_higher(scores: list[list[int]], k: int) -> None:
    marked = top_rows([torch.tensor(row, dtype=torch.int32) for row in scores], k)
    flat, chosen = torch.tensor([score for row in scores for score in row]), torch.cat(marked).bool()
    assert [len(mark) for mark in marked] == [len(row) for row in scores]
    assert int(chosen.sum()) == min(k, flat.numel())
    if 0 < k < flat.numel():
        assert flat[chosen].min() >= flat[~chosen].max()


def test_an_input_is_hot_when_all_of_its_lookups_are() -> None:
    assert hot_inputs(marks([1, 0], [0, 1, 1], [0, 1]), INPUTS).tolist() == [True, True, False]
    assert hot_inputs(marks([1, 0], [0, 1, 1], [0, 0]), INPUTS).tolist() == [False, True, False]


def test_budgets() -> None:
    assert rows_within(256 << 20, [16, 16]) == 1 << 22
    with pytest.raises(ConfigError, match="hot_bytes must be at least 64"):
        rows_within(63, [16])
    for bytes_ in (0, 1 << 60):
        with pytest.raises(ValueError, match=r"hot_bytes must be in \(0, \d+\], the memory of this machine"):
            check_hot_bytes(bytes_)


def test_displacement_is_the_largest_change_of_a_row() -> None:
    weight = torch.zeros(4, 2)
    displacement = Displacement(weight, marks([1, 0, 1, 1])[0])
    weight[0] = torch.tensor([0.25, -0.5])
    weight[1] = 9.0
    weight[2, 1] = 0.125
    weight[3, 0] = float("nan")
    displacement.measure(weight)
    assert displacement.largest.tolist() == [0.5, 0.125, float("inf")]
    # Below T in every dimension, not at T.
    assert displacement.stale(0.5).tolist() == [0, 0, 1, 0]
    assert displacement.stale(0.51).tolist() == [1, 0, 1, 0]
    again = Displacement.from_state(displacement.state_dict(), weight)
    assert again.stale(0.5).tolist() == [0, 0, 1, 0]
    with pytest.raises(ConfigError, match="measured already"):
        displacement.measure(weight)


def test_bisection_by_hand() -> None:
    tried: list[float] = []

    def dropped(threshold: float) -> float:
        tried.append(threshold)
        return 0.0 if threshold < 0.02 else 0.3 if threshold < 0.03 else 0.9

    found = bisect_threshold(dropped, 0.3, 0.08)
    assert tried == [0.05, 0.025] and found == (0.025, 0.3, 2)


def test_a_band_that_is_never_met_drops_nothing() -> None:
    found = bisect_threshold(lambda threshold: float(threshold > 0.03), 0.3, 0.08)
    assert found.value is None and found.steps == 25


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule(), [False, True, False]),
        (Rule(alpha=2), [True, True, False]),
        (Rule(alpha=3), [True, False, False]),
        (Rule(alpha=1), [True, True, True]),
        (Rule(alpha_per_bag=1), [True, False, False]),
        (Rule(alpha=1, alpha_per_bag=2), [True, False, False]),
    ],
)
def test_rules(rule: Rule, expected: list[bool]) -> None:
    # Stale lookups: 0 + bag 2 (with its row twice) + column 0, of 4; both of 2; column 1 alone, of 3.
    assert stale_inputs(marks([1, 0], [0, 0, 1], [0, 1]), INPUTS, rule).tolist() == expected


def test_rules_that_fit_no_input() -> None:
    with pytest.raises(ConfigError, match=r"alpha must be in \[1, 26\], the lookups of an input, got 27"):
        Rule(alpha=27).check(26, 0)
    with pytest.raises(ConfigError, match="alpha_per_bag needs multi-hot features"):
        Rule(alpha_per_bag=1).check(26, 0)


def test_a_snapshot_finds_its_threshold_and_comes_back_from_its_state() -> None:
    weights = [torch.zeros(10, 1)]
    snapshot = HotSnapshot(weights, [torch.ones(10, dtype=torch.uint8)])
    weights[0][:, 0] = torch.arange(10) / 100  # row r moved by r / 100
    sample = Inputs(torch.empty(10, 0), torch.arange(10)[:, None])
    # T = 0.05 drops rows 0-4: half. T = 0.025 drops rows 0-2: 0.3, within 0.3 ± 0.08.
    found = snapshot.decide(weights, sample, Rule(), 0.3, 0.08)
    assert found.value == 0.025 and found.steps == 2 and found.share == pytest.approx(0.3)
    again = HotSnapshot.from_state(snapshot.state_dict(), weights)
    assert again.stale[0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0] and again.found == found
    with pytest.raises(ConfigError, match="of a table of 10 rows, not 3"):
        HotSnapshot.from_state(snapshot.state_dict(), [torch.zeros(3, 1)])


@pytest.mark.parametrize(
    "change",
    [
        {"rows": torch.tensor([0, 10**12])},  # read far outside the table
        {"rows": torch.tensor([-1, 2])},
        {"rows": torch.tensor([2, 0])},
        {"rows": torch.tensor([0.0, 2.0])},
        {"largest": torch.zeros(0)},  # written to past its end
        {"before": torch.zeros(2, 1)},
        {"before": torch.zeros(1, 2)},
        {"num_rows": 5},
    ],
)
def test_a_displacement_of_another_table_is_refused_before_compiled_code_reads_it(change: dict[str, object]) -> None:
    weight = torch.zeros(4, 2)
    state = Displacement(weight, marks([1, 0, 1, 0])[0]).state_dict()
    Displacement.from_state(state, weight).measure(weight)
    with pytest.raises(ConfigError):
        Displacement.from_state({**state, **change}, weight)
