"""Importance: probabilities by surprise, the budget, and weights that keep the expectation."""

from __future__ import annotations

import pytest
import torch

from slipstream.data.batch import Batch, Inputs
from slipstream.errors import ConfigError
from slipstream.policies import Importance, Skipper, build_policy
from slipstream.staleness.surprise import in_proportion


def _batches(number: int, size: int = 512, seed: int = 0) -> list[Batch]:
    """Labels that the first column decides, but for a tenth."""
    draw = torch.Generator().manual_seed(seed)
    batches = []
    for i in range(number):
        ids = torch.randint(0, 40, (size, 3), generator=draw, dtype=torch.int32)
        flipped = torch.rand(size, generator=draw) < 0.1
        labels = ((ids[:, 0] < 8) ^ flipped).float()
        index = torch.arange(i * size, (i + 1) * size)
        batches.append(Batch(Inputs(torch.zeros(size, 0), ids), labels, index, torch.ones(size)))
    return batches


def test_what_surprises_is_kept_more_often_and_the_budget_holds() -> None:
    policy = Importance(0.3, warmup_samples=2_000)
    kept = seen = 0.0
    for batch in _batches(60):
        keep = policy.keep_probability(batch)
        assert keep is not None and keep.dtype == torch.float32 and keep.shape == (512,)
        assert float(keep.min()) >= 0.1 - 1e-6 and float(keep.max()) <= 1.0
        kept, seen = kept + float(keep.sum()), seen + len(batch)
    odd = (batch.inputs.ids[:, 0] < 8) != batch.labels.bool()
    assert float(keep[odd].mean()) > 2 * float(keep[~odd].mean())
    assert kept / seen == pytest.approx(0.3, abs=0.003)
    assert policy.report()["expected_share"] == pytest.approx(kept / seen)
    assert policy.report()["scout_log_loss"] < 0.45


def test_weights_keep_the_sum_of_the_labels() -> None:
    skipper = Skipper(torch.nn.Linear(1, 1), Importance(0.4, warmup_samples=0), seed=3)
    batches = _batches(200)
    total = float(sum(batch.labels.mean() for batch in batches) / len(batches))
    weighted = weights = 0.0
    for batch in skipper(batches):
        weighted += float((batch.weights * batch.labels).sum())
        weights += float(batch.weights.sum())
    assert weighted / weights == pytest.approx(total, rel=0.02)
    assert skipper.share_of_inputs_trained == pytest.approx(0.4, abs=0.01)


def test_fresh_inputs_are_kept() -> None:
    policy = Importance(0.5, fresh_below=2, warmup_samples=0)
    for batch in _batches(20):
        policy.keep_probability(batch)
    batch = _batches(1, seed=9)[0]
    batch.inputs.ids[:5, 2] = torch.arange(1_000, 1_005, dtype=torch.int32)
    keep = policy.keep_probability(batch)
    assert keep is not None and torch.equal(keep[:5], torch.ones(5))
    assert float(keep.mean()) == pytest.approx(0.5, abs=0.02)


def test_state_goes_on_and_budget_changes() -> None:
    first, second = Importance(0.5, warmup_samples=100), Importance(0.5, warmup_samples=100)
    batches = _batches(10)
    for batch in batches[:5]:
        first.keep_probability(batch)
    second.load_state_dict(first.state_dict())
    for batch in batches[5:]:
        one, other = first.keep_probability(batch), second.keep_probability(batch)
        assert one is not None and other is not None and torch.equal(one, other)
    first.set_budget(0.05)
    assert first.config.floor == 0.05
    first.set_budget(1.0)
    assert first.keep_probability(batches[0]) is None


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"budget": 0.05}, "floor must be at most budget"),
        ({"budget": 0.0}, "budget must be in"),
        ({"floor": 0.0}, "floor"),
        ({"bits": 40}, "bits"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, float], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build_policy({"name": "importance", **settings})


def test_labels_outside_the_unit_interval() -> None:
    batch = _batches(1)[0]
    batch.labels[3] = 5.0
    with pytest.raises(ConfigError, match="labels in"):
        Importance().keep_probability(batch)


@pytest.mark.parametrize("total", [60.0, 300.0, 511.0, 512.0])
def test_probabilities_in_proportion_add_up(total: float) -> None:
    score = torch.rand(512, generator=torch.Generator().manual_seed(1)) ** 4
    keep = in_proportion(score, 0.1, total)
    assert float(keep.sum()) == pytest.approx(total, rel=1e-3)
    free = (keep > 0.1) & (keep < 1.0)
    ratios = keep[free] / score[free]
    assert not len(ratios) or float(ratios.max() / ratios.min()) == pytest.approx(1.0, rel=1e-4)


def test_scores_of_zero_get_the_floor() -> None:
    assert torch.equal(in_proportion(torch.zeros(4), 0.2, 3.0), torch.full((4,), 0.2))
