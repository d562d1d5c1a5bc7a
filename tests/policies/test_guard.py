"""The guard: begins with no skipping, skips where it costs nothing, backs off where it does, and logs its moves."""

from __future__ import annotations

import json

import pytest
import torch

from slipstream.data.batch import Batch, Inputs
from slipstream.errors import ConfigError
from slipstream.policies import Guard, build_policy

CHUNK = 1024


def _stream(batches: int, rows: int, *, seed: int = 0, fickle: bool = False) -> list[Batch]:
    """Labels by the parity of one id of ``rows``, a fifth of them flipped; ``fickle``: the parity turns each batch."""
    draw = torch.Generator().manual_seed(seed)
    out = []
    for i in range(batches):
        ids = torch.randint(0, rows, (CHUNK, 1), generator=draw, dtype=torch.int32)
        turn = i // 4 if fickle else 0
        labels = (((ids[:, 0] + turn) % 2 == 0) ^ (torch.rand(CHUNK, generator=draw) < 0.2)).float()
        index = torch.arange(i * CHUNK, (i + 1) * CHUNK)
        out.append(Batch(Inputs(torch.zeros(CHUNK, 0), ids), labels, index, torch.ones(CHUNK)))
    return out


def _guard(**settings: object) -> Guard:
    policy = Guard(chunk=CHUNK, open_every=4, bits=12, **settings)  # type: ignore[arg-type]
    policy.attach({}, seed=0)
    return policy


def _feed(policy: Guard, batches: list[Batch], loss: float = 0.5) -> list[float]:
    budgets = []
    for batch in batches:
        keep = policy.keep_probability(batch)
        policy.observe_losses(batch, torch.full((len(batch),), loss))
        budgets.append(1.0 if keep is None else float(keep.mean()))
    return budgets


def test_it_skips_where_the_data_is_redundant() -> None:
    policy = _guard(tolerance=0.02)
    budgets = _feed(policy, _stream(150, rows=8))
    assert budgets[:6] == [1.0] * 6
    assert policy.budget < 1.0
    # Open chunks stay open.
    assert all(budget == 1.0 for budget in budgets[::4])
    moves = policy.report()["moves"]
    assert moves and moves[0]["budget"] == 0.9 and json.dumps(moves)


def test_it_does_not_skip_where_all_data_teaches() -> None:
    policy = _guard(tolerance=0.001)
    budgets = _feed(policy, _stream(60, rows=20_000))
    assert min(budgets) == 1.0 and policy.budget == 1.0


def test_it_backs_off_when_the_cost_comes() -> None:
    policy = _guard(tolerance=0.02)
    _feed(policy, _stream(150, rows=8))
    before = policy.budget
    _feed(policy, _stream(40, rows=8, seed=1, fickle=True))
    assert policy.budget > before
    assert "broke" in policy.report()["moves"][-1]["reason"]


def test_a_model_that_gets_worse_against_the_scout_vetoes() -> None:
    policy = _guard(tolerance=0.02)
    _feed(policy, _stream(150, rows=8))
    before = policy.budget
    _feed(policy, _stream(12, rows=8, seed=2), loss=0.8)
    assert policy.budget > before
    assert any("model" in move["reason"] for move in policy.report()["moves"])


def test_a_scout_that_explains_nothing_is_no_witness() -> None:
    policy = _guard(tolerance=0.02)
    batches = _stream(60, rows=8)
    for batch in batches:
        batch.inputs.ids.zero_()
    assert min(_feed(policy, batches)) == 1.0
    assert policy.budget == 1.0


def test_state_goes_on() -> None:
    batches = _stream(60, rows=8)
    first, second = _guard(tolerance=0.02), _guard(tolerance=0.02)
    _feed(first, batches[:33])
    second.load_state_dict(first.state_dict())
    assert _feed(first, batches[33:]) == _feed(second, batches[33:])
    assert first.report() == second.report()


@pytest.mark.parametrize("settings", [{"tolerance": 0.0}, {"policy": "psse"}, {"safety": 0.5}, {"open_every": 1}])
def test_settings_that_make_no_sense(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        build_policy({"name": "guard", **settings})
