"""What can be seen of several ranks in one process."""

from __future__ import annotations

import pytest

from slipstream.distributed import hearing
from slipstream.policies import PSSE, Combine, Guard, Importance, Policy, Saturation


@pytest.mark.parametrize(
    "policy", [PSSE(), Saturation(), Guard(), Combine(Importance(0.5), PSSE())], ids=lambda policy: policy.name
)
def test_a_policy_over_ranks_is_read_and_ordered_as_in_one_process(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing, "need_group", lambda: None)
    wrapped = hearing.over_ranks(policy)
    assert wrapped is not policy
    for trait, kind in Policy.__annotations__.items():
        if kind == "bool":
            assert getattr(wrapped, trait) == getattr(policy, trait), trait
