"""Which rows are popular, where counts are larger than a float32 holds exactly."""

from __future__ import annotations

import pytest
import torch

from slipstream.staleness import CountedRows, Rule


@pytest.mark.parametrize(
    ("counts", "rule", "kept"),
    [
        ([2**30, 2**30 - 1, 2**30 - 30], Rule("min_count", 2**30), [True, False, False]),
        ([2**30, 2**30 - 1, 2**30 - 30], Rule("min_count", 2**30 - 1.5), [True, True, False]),
        ([2**31 - 1, 2**31 - 2, 1], Rule("min_count", 2**31 - 1), [True, False, False]),
        ([2**31 - 1, 2**31 - 2, 1], Rule("min_count", 1e300), [False, False, False]),
        ([2**30, 2**30 - 1, 2**30 - 30], Rule("share", 0.3), [True, False, False]),
    ],
)
def test_counts_beyond_24_bits_are_compared_exactly(counts: list[int], rule: Rule, kept: list[bool]) -> None:
    rows = CountedRows({"a": 3}, None)
    rows.load_state_dict({"a": {"scores": torch.tensor(counts, dtype=torch.int32)}})
    found = rows.keep(["a"], rule)
    assert found is not None and found.marks["a"].tolist() == kept and found.rows == sum(kept)
