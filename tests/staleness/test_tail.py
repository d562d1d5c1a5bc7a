import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.data.batch import Bag, Batch, Inputs
from slipstream.errors import ConfigError, IndexOutOfRange
from slipstream.policies import Random, Slipstream, build_policy
from slipstream.staleness import TailInputs


def inputs_of(ids: np.ndarray, bags: list[list[int]]) -> Inputs:
    offsets = torch.tensor([0, *np.cumsum([len(bag) for bag in bags])])
    values = torch.tensor([value for bag in bags for value in bag], dtype=torch.int32)
    return Inputs(torch.empty(len(bags), 0), torch.from_numpy(ids.astype(np.int32)), (Bag(values, offsets),))


def batch_of(ids: list[list[int]]) -> Batch:
    size = len(ids)
    inputs = Inputs(torch.empty(size, 0), torch.tensor(ids, dtype=torch.int32))
    return Batch(inputs, torch.zeros(size), torch.arange(size), torch.ones(size))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_inputs_of_rare_rows_equal_a_count_by_hand(seed, limit):
    rng = np.random.default_rng(seed)
    tail = TailInputs(limit)
    seen: dict[tuple[int, int], int] = {}
    for size in rng.integers(0, 7, 6):
        ids = rng.integers(0, 9, (size, 2)) ** 2
        bags = [rng.integers(0, 12, rng.integers(0, 3)).tolist() for _ in range(size)]
        touched = [[(0, a), (1, b), *((2, v) for v in bag)] for (a, b), bag in zip(ids.tolist(), bags, strict=True)]
        found = tail.pass_by(inputs_of(ids, bags))
        assert found.tolist() == [any(seen.get(row, 0) < limit for row in rows) for rows in touched]
        for row in (row for rows in touched for row in rows):
            seen[row] = seen.get(row, 0) + 1
        other = TailInputs(limit)
        other.load_state_dict(tail.state_dict())
        tail = other


def test_random_keeps_the_tail_within_its_budget():
    policy = Random(0.5, protect_tail=2)
    often = [[1, 1]] * 9
    assert policy.keep_probability(batch_of(often)).tolist() == [0.5] * 9, "all are of the tail: nothing to choose"
    keep = policy.keep_probability(batch_of([*often, [1, 7]]))
    assert keep[-1] == 1.0 and keep.sum() == pytest.approx(5.0)
    many = policy.keep_probability(batch_of([[1, 8], [1, 9], [1, 10], [1, 1]]))
    assert many.tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5]), "they would take more than half of the budget"
    assert policy.report()["protect_tail"] == 2
    again = Random(0.5, protect_tail=2)
    again.load_state_dict(policy.state_dict())
    assert again.keep_probability(batch_of([[1, 1], [1, 99]])).tolist() == [0.5, 0.5]
    with pytest.raises(ConfigError, match="level=inputs"):
        Random(level="rows", protect_tail=1)
    with pytest.raises(ConfigError, match=r"\[1, 255\]"):
        TailInputs(0)


def test_slipstream_never_drops_an_input_of_the_tail(monkeypatch):
    policy = build_policy({"name": "slipstream", "mode": "periodic", "protect_tail": 2})
    assert isinstance(policy, Slipstream)
    monkeypatch.setattr(policy._course, "dropped", lambda inputs: torch.ones(len(inputs.ids), dtype=torch.bool))
    assert policy.keep_probability(batch_of([[1], [2]])).tolist() == [1, 1]
    assert policy.keep_probability(batch_of([[1], [3]])).tolist() == [1, 1]
    assert policy.keep_probability(batch_of([[1], [2], [3]])).tolist() == [0, 1, 1]
    assert policy.state_dict()["tail"]["seen"][0][:4].tolist() == [0, 2, 2, 2]


def test_a_state_of_more_features_is_refused_before_anything_is_counted():
    tail = TailInputs(2)
    tail.load_state_dict({"seen": [torch.zeros(4, dtype=torch.uint8)] * 4})
    with pytest.raises(ConfigError, match="3 sparse features, those of before had 4"):
        tail.pass_by(inputs_of(np.zeros((1, 2)), [[0]]))


@pytest.mark.parametrize("ids", [[[0, -5]], [[-1_294_967_296, 0]]])
def test_ids_that_are_no_rows_are_refused_before_compiled_code(ids: list[list[int]]) -> None:
    with pytest.raises(IndexOutOfRange, match=r"feature [01]: an id is -\d+; use row numbers"):
        TailInputs(3).pass_by(batch_of(ids).inputs)


@pytest.mark.parametrize("offsets", [[0, 10**9], [0, -1], [5, 1], [0]])
def test_bags_outside_their_ids_are_refused_before_compiled_code(offsets: list[int]) -> None:
    bag = Bag(torch.zeros(3, dtype=torch.int32), torch.tensor(offsets))
    with pytest.raises(IndexOutOfRange, match="offsets"):
        TailInputs(3).pass_by(Inputs(torch.empty(1, 0), torch.empty(1, 0, dtype=torch.int32), (bag,)))


def test_an_id_beyond_all_tables_takes_no_memory() -> None:
    bag = Bag(torch.tensor([2**40]), torch.tensor([0, 1]))
    with pytest.raises(IndexOutOfRange, match="an id is 1099511627776"):
        TailInputs(3).pass_by(Inputs(torch.empty(1, 0), torch.empty(1, 0, dtype=torch.int32), (bag,)))
