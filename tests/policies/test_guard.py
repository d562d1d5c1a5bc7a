"""The guard: begins with no skipping, skips where its own learning curve is flat, backs off, and says why."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slipstream.data.batch import Batch, Inputs
from slipstream.errors import ConfigError
from slipstream.policies import Guard, Progress, build_policy
from slipstream.policies.guard import LADDER

SIZE = 64
Curve = Callable[[float], float]


class Learner(nn.Module):
    """Knows how many inputs it was trained on; its logit is right by as much as a curve says."""

    def __init__(self, curve: Curve) -> None:
        super().__init__()
        self.curve = curve
        self.trained = nn.Parameter(torch.zeros((), dtype=torch.float64), requires_grad=False)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Loss by the curve, harder for some inputs than for others, whoever predicts."""
    assert isinstance(model, Learner)
    hard = 1.0 + 0.2 * torch.sin(batch.index.double())
    return (hard * model.curve(max(float(model.trained), 1.0))).float()


class Training:
    """Feeds a guard with what a training would hand out."""

    def __init__(self, curve: Curve, **settings: Any) -> None:
        self.guard = Guard(first_copy=8 * SIZE, **settings)
        self.model = Learner(curve)
        self.guard.attach({}, seed=0)
        self.guard.attach_model(self.model, loss_of)
        self.position = 0

    def run(self, batches: int, epoch: int = 0) -> list[float]:
        """The budget after each batch of the data."""
        budgets = []
        for _ in range(batches):
            index = torch.arange(self.position, self.position + SIZE)
            labels = (index % 3 == 0).float()
            batch = Batch(Inputs(torch.zeros(SIZE, 0), torch.zeros(SIZE, 1).int()), labels, index, torch.ones(SIZE))
            self.position += SIZE
            keep = self.guard.keep_probability(batch)
            kept = batch.narrow(0, SIZE if keep is None else round(float(keep.sum())))
            self.guard.update_gates(Progress(0, 0, None, epoch=epoch))
            self.guard.observe_losses(kept, loss_of(self.model, kept))
            with torch.no_grad():
                self.model.trained += len(kept)
            budgets.append(self.guard.budget)
        return budgets


def flat(n: float) -> float:
    return 0.5 + 0.5 * n**-0.9


def by_doubling(share: float) -> Curve:
    """Each doubling is worth the same share of the loss that is left."""
    return lambda n: n ** -math.log2(1.0 + share)


def test_it_skips_where_the_curve_is_flat_one_rung_at_a_time() -> None:
    training = Training(flat, tolerance=0.01)
    budgets = training.run(2000)
    assert budgets[0] == 1.0 and budgets[-1] == LADDER[-1]
    assert [b for b in LADDER if b in budgets] == list(LADDER)
    assert list(dict.fromkeys(budgets)) == list(LADDER)
    moves = training.guard.report()["moves"]
    assert json.dumps(moves) and moves[0]["reason"] == "too little was measured yet"
    # Three doublings, looked at twice each, come before the first rung.
    assert moves[1]["trained"] >= 6 * 8 * SIZE and moves[1]["budget"] == 0.95


def test_what_a_doubling_is_worth_is_measured_as_it_is() -> None:
    training = Training(by_doubling(0.02), tolerance=1e-4)
    training.run(1000)
    found = training.guard.report()["loss_per_doubling"]
    assert found == pytest.approx(0.02, rel=0.01)


def test_it_skips_as_much_as_the_tolerance_holds_and_no_more() -> None:
    # 0.7 of the inputs cost 0.515 doublings, 0.6 cost 0.737 and 0.95 cost 0.074; 0.8 of the tolerance may be taken.
    for doublings, budget in ((0.53 / 0.8, 0.7), (0.08 / 0.8, 0.95), (0.07, 1.0)):
        training = Training(by_doubling(0.02), tolerance=0.02 * doublings)
        assert training.run(2500)[-1] == budget


def test_it_says_why_it_skips_nothing_and_measures_rarely_then() -> None:
    training, other = Training(by_doubling(0.02), tolerance=1e-4), Training(by_doubling(0.02), tolerance=1e-2)
    assert set(training.run(4000)) == {1.0}
    other.run(4000)
    report = training.guard.report()
    assert report["moves"][-1]["reason"] == "even the gentlest skipping may cost more than the tolerance"
    measured = report["batches_measured"]
    assert measured < 0.03 * 4000 and measured < 0.7 * other.guard.report()["batches_measured"]


def test_a_curve_that_steepens_is_not_extrapolated() -> None:
    training = Training(lambda n: 1.0 - 1e-4 * n**0.5, tolerance=0.05)
    assert set(training.run(600)) == {1.0}
    assert "does not flatten yet" in training.guard.report()["moves"][-1]["reason"]


def test_it_backs_off_when_the_bound_breaks() -> None:
    turn = 200_000.0

    def late(n: float) -> float:
        return flat(min(n, turn)) - (0.02 * math.log2(n / turn) if n > turn else 0.0)

    training = Training(late, tolerance=0.01)
    before = training.run(8000)
    assert min(before) < 0.5
    training.run(16_000)
    assert training.guard.budget > 0.5
    assert any("does not flatten" in m["reason"] or "broke" in m["reason"] for m in training.guard.report()["moves"])


def test_an_auc_tolerance() -> None:
    # Losses that fall by half at each turn leave every positive above every negative: AUC is 1, and cannot fall.
    training = Training(flat, tolerance=None, auc_tolerance=0.001)
    assert training.run(2000)[-1] == LADDER[-1]
    report = training.guard.report()
    assert report["auc_per_doubling"] == 0.0 and report["tolerance"] is None
    both = Training(by_doubling(0.02), tolerance=1e-4, auc_tolerance=0.001)
    assert set(both.run(2000)) == {1.0}


def test_after_the_first_epoch_nothing_is_measured() -> None:
    training = Training(flat, tolerance=0.01)
    before = training.run(700)[-1]
    measured = training.guard.report()["batches_measured"]
    assert before < 1.0 and set(training.run(700, epoch=1)) == {before}
    report = training.guard.report()
    assert report["batches_measured"] == measured and "no input is fresh" in report["moves"][-1]["reason"]


def test_moves_are_told_once() -> None:
    training = Training(flat, tolerance=0.01)
    training.run(2000)
    told = training.guard.take_moves()
    assert told == training.guard.report()["moves"] and training.guard.take_moves() == []


def test_moves_of_a_state_are_decisions_with_evidence_of_numbers() -> None:
    training = Training(flat, tolerance=0.01)
    training.run(2000)
    state = training.guard.state_dict()
    last = state["moves"][-1]
    for change in ({"budget": math.inf}, {"reason": None}, {"policy": "x"}, {"samples": 0.5}):
        with pytest.raises(ConfigError, match="the state's move"):
            training.guard.load_state_dict(state | {"moves": [*state["moves"], last | change]})
    endless = last | {"loss_error": math.inf}  # as an earlier version could write it
    training.guard.load_state_dict(state | {"moves": [*state["moves"], endless]})
    told = training.guard.report()["moves"][-1]
    assert "loss_error" not in told and told["reason"] == last["reason"]


@pytest.mark.parametrize("cut", [3, 20, 77, 500])
@pytest.mark.parametrize("settings", [{"tolerance": 0.01}, {"tolerance": None, "auc_tolerance": 0.01}])
def test_state_goes_on(cut: int, settings: dict[str, Any]) -> None:
    whole, before, after = (Training(flat, **settings) for _ in range(3))
    expected = whole.run(1200)
    assert before.run(cut) == expected[:cut]
    after.guard.load_state_dict(before.guard.state_dict())
    after.position, after.model = before.position, before.model
    after.guard._evidence._past._model = before.model  # type: ignore[union-attr]
    assert after.run(1200 - cut) == expected[cut:]
    assert after.guard.report() == whole.guard.report()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": 0.0}, "tolerance: .*greater than 0"),
        ({"tolerance": 1.0}, "tolerance: .*less than 1"),
        ({"auc_tolerance": 0.5}, "auc_tolerance: .*less than 0.5"),
        ({"tolerance": None}, r"tolerance in \(0, 1\) or auc_tolerance in \(0, 0.5\) must be set"),
        ({"policy": "psse"}, "policy: .*'random' or 'importance'"),
        ({"measure_every": 0}, "measure_every: .*greater than or equal to 1"),
        ({"first_copy": 0}, "first_copy: .*greater than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_policy({"name": "guard", **settings})


def test_what_it_cannot_watch_is_refused() -> None:
    batch = Batch(Inputs(torch.zeros(2, 0), torch.zeros(2, 1).int()), torch.zeros(2), torch.arange(2), torch.ones(2))
    with pytest.raises(ConfigError, match="was not given the model; train with a Skipper"):
        Guard().observe_losses(batch, torch.zeros(2))
    training = Training(flat, tolerance=None, auc_tolerance=0.1)
    training.run(20)
    batch.labels[0] = 0.5
    with pytest.raises(ConfigError, match="auc_tolerance needs labels of 0 and 1; set tolerance alone"):
        for _ in range(40):
            training.guard.observe_losses(batch, torch.full((2,), 0.5))
