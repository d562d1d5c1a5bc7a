"""Importance: probabilities by surprise, the budget, and weights that keep the expectation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.data.batch import Bag, Batch, Inputs
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


def test_by_label_alone_the_rarer_class_is_kept_more_often() -> None:
    policy, other = Importance(0.5, score="label"), Importance(0.5, score="label")
    for batch in _batches(40):
        keep = policy.keep_probability(batch)
    assert keep is not None
    rate = float(torch.cat([batch.labels for batch in _batches(40)]).mean())
    positive, negative = keep[batch.labels == 1.0], keep[batch.labels == 0.0]
    assert len(positive.unique()) == len(negative.unique()) == 1
    assert float(positive[0] / negative[0]) == pytest.approx((1 - rate) / rate, rel=0.1)
    assert "scout_log_loss" not in policy.report()
    other.load_state_dict(policy.state_dict())
    one, two = policy.keep_probability(batch), other.keep_probability(batch)
    assert one is not None and two is not None and torch.equal(one, two)
    with pytest.raises(ConfigError, match="not of score 'scout'"):
        Importance(0.5).load_state_dict(policy.state_dict())


def test_a_scout_that_explains_nothing_rests_and_wakes_when_it_can_explain() -> None:
    draw = torch.Generator().manual_seed(1)
    noise, signal = _batches(250), _batches(400, seed=1)
    for batch in noise:
        batch.labels = (torch.rand(512, generator=draw) < 0.3).float()
    policy = Importance(0.5, bits=10)
    for batch in noise:
        keep = policy.keep_probability(batch)
    assert keep is not None and len(keep.unique()) == 2
    rested = policy.report()["scout_rested"]
    assert rested > 0.15 and policy.report()["scout_explains"] < 0.01
    for batch in signal:
        keep = policy.keep_probability(batch)
    assert keep is not None and len(keep.unique()) > 2
    # A scout that never rests is as it was.
    tireless = Importance(0.5, bits=10, rest_below=0.0)
    for batch in noise:
        keep = tireless.keep_probability(batch)
    assert keep is not None and len(keep.unique()) > 2


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
    asked = Importance(0.5, floor=0.1)
    for policy, least in ((first, 0.025), (asked, 0.05)):
        policy.set_budget(0.05)
        assert policy.config.least == least
        policy.set_budget(0.5)
        assert policy.config.least == 0.1, "the floor stayed down after the budget had come back"
    for budget in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="budget must be in"):
            first.set_budget(budget)


def test_at_a_budget_of_one_a_scout_that_has_begun_goes_on_learning() -> None:
    policy, batches = Importance(1.0, warmup_samples=100), _batches(3)
    assert policy.keep_probability(batches[0]) is None
    assert "scout_log_loss" not in policy.report()
    policy.set_budget(0.5)
    assert policy.keep_probability(batches[0]) is not None
    loss = policy.report()["scout_log_loss"]
    policy.set_budget(1.0)
    assert policy.keep_probability(batches[1]) is None
    assert policy.report()["scout_log_loss"] < loss
    assert policy.report()["expected_share"] == pytest.approx(0.75)


def test_a_state_of_other_slots_is_refused() -> None:
    saved = Importance(0.5, bits=10)
    saved.keep_probability(_batches(1)[0])
    for bits in (9, 12):
        with pytest.raises(ConfigError, match=rf"not those of 2\^{bits} slots"):
            Importance(0.5, bits=bits).load_state_dict(saved.state_dict())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_dense_values_that_are_no_numbers_are_refused_before_anything_is_learned(value: float) -> None:
    policy = Importance(0.5, warmup_samples=0)
    good, bad, other = _batches(3)
    for batch in (good, bad, other):
        batch.inputs = batch.inputs._replace(dense=torch.zeros(512, 2))
    policy.keep_probability(good)
    bad.inputs.dense[7, 1] = value
    with pytest.raises(ConfigError, match="finite"):
        policy.keep_probability(bad)
    keep = policy.keep_probability(other)
    assert keep is not None and bool(keep.isfinite().all())


@settings(deadline=None, max_examples=40)
@given(
    budget=st.sampled_from([0.02, 0.25, 0.5, 0.9]),
    share_of_floor=st.sampled_from([0.1, 0.5, 1.0]),
    power=st.sampled_from([0.5, 1.0, 4.0]),
    fresh_below=st.integers(0, 3),
    sizes=st.lists(st.sampled_from([0, 1, 2, 33, 200]), min_size=1, max_size=6),
    bags=st.booleans(),
    wide=st.booleans(),
    seed=st.integers(0, 5),
)
def test_probabilities_stay_within_floor_and_one(
    budget: float,
    share_of_floor: float,
    power: float,
    fresh_below: int,
    sizes: list[int],
    bags: bool,
    wide: bool,
    seed: int,
) -> None:
    floor = budget * share_of_floor
    policy = Importance(budget, floor=floor, power=power, fresh_below=fresh_below, warmup_samples=20, bits=8)
    draw = torch.Generator().manual_seed(seed)
    for size in sizes:
        # Columns of a wider tensor (not contiguous), many duplicates, bags of which a third is empty.
        ids = torch.randint(0, 5, (size, 4), generator=draw, dtype=torch.int64 if wide else torch.int32)[:, 1:3]
        lengths = torch.randint(0, 3, (size,), generator=draw)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        bag = Bag(torch.randint(0, 4, (int(lengths.sum()),), generator=draw).int(), offsets.int())
        labels = (torch.rand(size, generator=draw) < 0.4).float()
        inputs = Inputs(torch.zeros(size, 0), ids, (bag,) if bags else ())
        keep = policy.keep_probability(Batch(inputs, labels, torch.arange(size), torch.ones(size)))
        assert keep is not None and keep.dtype == torch.float32 and keep.shape == (size,)
        assert bool(((keep >= floor * (1 - 1e-6)) & (keep <= 1.0)).all())
        logit_offset = policy.logit_offset(Batch(inputs, labels, torch.arange(size), torch.ones(size)))
        assert logit_offset.shape == (size,) and bool(logit_offset.isfinite().all())
        assert bool((logit_offset.abs() <= -math.log(floor) + 1e-5).all())


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"budget": 0.05, "floor": 0.1}, "floor must be at most budget"),
        ({"budget": 0.0}, "budget must be in"),
        ({"floor": 0.0}, "floor"),
        ({"bits": 40}, "bits"),
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, float], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build_policy({"name": "importance", **wrong})


@pytest.mark.parametrize("label", [5.0, -0.5, float("nan")])
def test_labels_outside_the_unit_interval(label: float) -> None:
    batch = _batches(1)[0]
    batch.labels[3] = label
    with pytest.raises(ConfigError, match="labels in"):
        Importance().keep_probability(batch)


@pytest.mark.parametrize("total", [60.0, 300.0, 511.0, 512.0])
def test_probabilities_in_proportion_add_up(total: float) -> None:
    score = torch.rand(512, generator=torch.Generator().manual_seed(1)) ** 4
    keep, factor = in_proportion(score, 0.1, total)
    assert torch.equal(keep, (score * factor).clamp(0.1, 1.0))
    assert float(keep.sum()) == pytest.approx(total, rel=1e-3)
    free = (keep > 0.1) & (keep < 1.0)
    ratios = keep[free] / score[free]
    assert not len(ratios) or float(ratios.max() / ratios.min()) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("score", ["label", "scout"])
def test_a_small_budget_leaves_a_choice(score: str) -> None:
    policy = Importance(0.1, score=score, warmup_samples=0, bits=8)
    for batch in _batches(20):
        batch.labels = (batch.index % 20 == 0).float()
        keep = policy.keep_probability(batch)
    assert keep is not None and float(keep.mean()) == pytest.approx(0.1, abs=0.02)
    assert float(keep[batch.labels > 0].mean()) > 3 * float(keep[batch.labels == 0].mean())


def test_scores_of_zero_get_the_floor() -> None:
    assert torch.equal(in_proportion(torch.zeros(4), 0.2, 3.0)[0], torch.full((4,), 0.2))
