from __future__ import annotations

from importlib.metadata import version

import pytest
import torch

from slipstream import doctor
from slipstream.kernels import registry
from slipstream.kernels.types import Rule


def test_a_sound_installation_has_only_sound_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    findings = doctor.self_check(seconds=0)
    assert {finding.name for finding in findings} == {"lookup", "row update", "threads", "spin"}
    assert all(finding.healthy for finding in findings), findings


def test_an_unbounded_spin_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    finding = doctor.spin()
    assert finding.healthy is False and "GOMP_SPINCOUNT=1000" in finding.detail


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = registry.pool
    monkeypatch.setattr(registry, "pool", lambda *arguments: right(*arguments) * 1.01)
    assert doctor.compare_pool() > doctor.TOLERANCE
    monkeypatch.setattr(registry, "row_update", lambda *_: None)
    assert all(doctor.compare_update(rule) > doctor.TOLERANCE for rule in Rule if rule is not Rule.NORM)


def test_the_check_leaves_the_random_state_and_threads_alone() -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    doctor.self_check(seconds=0)
    assert torch.equal(before, torch.get_rng_state()) and threads == torch.get_num_threads()


def test_the_description_says_what_computes() -> None:
    facts = doctor.describe()
    assert facts["torch"] == version("torch") and facts["threads"] == str(torch.get_num_threads())
    assert {"threading layer", "spin", "kernels, float32 on the CPU"} <= facts.keys()
