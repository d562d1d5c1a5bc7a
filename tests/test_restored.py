"""Parts of saved states are taken over as what they must be, or refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from slipstream.errors import ConfigError
from slipstream.restored import check_inputs, checked_positions, copy_into, finite_number, whole_number


@pytest.mark.parametrize("value", [-1, 2**53 + 1, 10**400, 1.0, math.nan, True, None, "3", torch.tensor(3)])
def test_what_is_no_count_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="the state's steps is"):
        whole_number({"steps": value}, "steps")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39, 10**400, 0, -0.5, True, None, "3"])
def test_what_is_no_positive_number_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="the state's 1 is"):
        finite_number([0, value], 1, above=0.0)


def test_counts_and_numbers_come_as_they_are() -> None:
    assert [whole_number([0, 2**53], place) for place in (0, 1)] == [0, 2**53]
    assert [finite_number({"a": value}, "a") for value in (-3, 3e38, -3e38)] == [-3.0, 3e38, -3e38]


@pytest.mark.parametrize(
    "saved", [torch.ones(1), torch.ones(()), torch.ones(4), torch.ones(3, dtype=torch.float64), torch.ones(3, 1), None]
)
def test_a_tensor_of_another_kind_is_not_repeated_or_cut(saved: Any) -> None:
    target = torch.zeros(3)
    with pytest.raises(ConfigError, match=r"the state's gates is .*not float32 \[3\]"):
        copy_into(target, saved, "gates")
    assert target.eq(0).all()
    copy_into(target, torch.arange(3.0), "gates")
    assert target.tolist() == [0.0, 1.0, 2.0]


def test_positions_are_of_the_samples_there_are() -> None:
    for fine in ([], [0], [4, 0, 4]):
        assert checked_positions(torch.tensor(fine, dtype=torch.int64), "run", 5).tolist() == fine
    for wrong in (torch.tensor([5]), torch.tensor([-1, 2])):
        with pytest.raises(ConfigError, match="the state's run has positions outside of 5 samples"):
            checked_positions(wrong, "run", 5)
    for wrong in (torch.ones(2), torch.ones(2, dtype=torch.int32), torch.zeros(2, 1, dtype=torch.int64), None):
        with pytest.raises(ConfigError, match="the state's run is"):
            checked_positions(wrong, "run", 5)


def test_features_of_inputs_are_whole_numbers_of_one_length() -> None:
    ids, values, offsets = torch.zeros(3, 2, dtype=torch.int32), torch.zeros(4, dtype=torch.int32), torch.arange(4)
    check_inputs(ids, [(values, offsets)], 3)
    for wrong in (
        (ids.float(), values, offsets),
        (ids.bool(), values, offsets),
        (ids[0], values, offsets),
        (ids[:2], values, offsets),
        (ids, values.view(2, 2), offsets),
        (ids, values.double(), offsets),
        (ids, values, offsets[:3]),
        (ids, values, offsets.int()),
        (None, values, offsets),
        (ids, values, None),
    ):
        with pytest.raises(ConfigError, match="features of another shape or type"):
            check_inputs(wrong[0], [wrong[1:]], 3)
