"""What can be seen of several ranks in one process."""

from __future__ import annotations

import pytest
import torch

from slipstream.distributed import Ledger, exactly_once, hearing
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


def test_samples_of_one_process_are_not_missed_after_a_second_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exactly_once.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(exactly_once.dist, "all_reduce", lambda tensor: None)
    ledger = Ledger()
    ledger.load(None)  # one process trained on samples 0 to 3, and saved; then there were several
    ledger.add(torch.arange(4, 6), torch.arange(4, 6))
    ledger.check()
    again = Ledger()
    again.load(ledger.state())
    again.add(torch.arange(6, 8), torch.arange(6, 8))
    again.finish(8, range(8), 1)
