"""What choosing by the label does to the odds, and that adding it to the logits gives the full data's model back."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from slipstream.data.batch import Batch, Inputs
from slipstream.data.schema import FeatureInfo
from slipstream.errors import ConfigError
from slipstream.interop import weighted
from slipstream.models import DLRMConfig, MatrixFactorizationConfig, TwoTowerConfig, build_model
from slipstream.policies import Combine, Guard, Importance, Random, Skipper, build_policy
from slipstream.policies.skipper import FEW_KEPT
from slipstream.testing import check_policy

TRUTH = (-3.0, 1.5)
"""Intercept and slope."""


def _clicks(number: int, seed: int, size: int = 512) -> list[Batch]:
    """Rare positives of a logistic model of one column, which the ids show in ten steps."""
    draw = torch.Generator().manual_seed(seed)
    batches: list[Batch] = []
    for i in range(number):
        x = torch.randn(size, 1, generator=draw)
        labels = (torch.rand(size, generator=draw) < torch.sigmoid(TRUTH[0] + TRUTH[1] * x[:, 0])).float()
        ids = ((x + 3) * 10 / 6).clamp(0, 9).int()
        batches.append(Batch(Inputs(x, ids), labels, torch.arange(i * size, (i + 1) * size), torch.ones(size)))
    return batches


def _skipper(policy: Any, **more: Any) -> Skipper:
    return Skipper(nn.Identity(), policy, batch_size=512, **more)


def _fit(batches: list[Batch]) -> Tensor:
    """Intercept and slope of greatest likelihood, by Newton's method."""
    whole = Batch.concat(batches)
    x = torch.cat([torch.ones(len(whole), 1), whole.inputs.dense], dim=1).double()
    shift = 0.0 if whole.logit_offset is None else whole.logit_offset.double()
    beta = torch.tensor(TRUTH, dtype=torch.float64)
    for _ in range(20):
        p = torch.sigmoid(x @ beta + shift)
        gradient = x.T @ (whole.weights * (p - whole.labels))
        beta -= torch.linalg.solve(x.T @ (x * (whole.weights * p * (1 - p)).unsqueeze(1)), gradient)
    return beta


def _error(score: Literal["scout", "label"], budget: float, *, by_odds: bool) -> float:
    """Mean square of what the fits on kept inputs are off the fit on all."""
    errors: list[float] = []
    for seed in range(12):
        batches = _clicks(40, seed)
        policy = Importance(budget, score=score, warmup_samples=2_000, bits=8)
        kept = list(_skipper(policy, seed=seed, adds_logit_offset=by_odds)(batches))
        errors.append(float((_fit(kept) - _fit(batches)).square().sum()))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("score", ["scout", "label"])
def test_the_full_datas_model_comes_back_and_varies_less_than_by_weights(score: Literal["scout", "label"]) -> None:
    by_odds, by_weights = _error(score, 0.2, by_odds=True), _error(score, 0.2, by_odds=False)
    assert by_odds < 0.05
    assert by_odds < by_weights


@settings(deadline=None, max_examples=60)
@given(
    size=st.sampled_from([1, 33, 300]),
    budget=st.sampled_from([0.05, 0.25, 0.5, 0.9]),
    power=st.sampled_from([0.5, 1.0, 2.0]),
    score=st.sampled_from(["scout", "label"]),
    fresh_below=st.sampled_from([0, 2]),
    seed=st.integers(0, 20),
)
def test_it_is_what_the_other_label_would_have_made_of_the_probability(
    size: int, budget: float, power: float, score: Any, fresh_below: int, seed: int
) -> None:
    assume(size == 1 or size * budget >= FEW_KEPT)
    policy = Importance(budget, score=score, power=power, fresh_below=fresh_below, warmup_samples=600, bits=8)
    for batch in _clicks(3, seed):
        policy.keep_probability(batch)
    batch = _clicks(1, seed + 1, size)[0]
    twin = copy.deepcopy(policy)
    keep = policy.keep_probability(batch)
    offset = policy.logit_offset(batch)
    labels = batch.labels.clone()
    labels[-1] = 1.0 - labels[-1]
    other = twin.keep_probability(replace(batch, labels=labels))
    assert keep is not None and other is not None
    wanted = math.log(float(keep[-1]) / float(other[-1])) * (1.0 if batch.labels[-1] > 0 else -1.0)
    # Others that come to the floor or to 1 by it move the factor a little more.
    assert float(offset[-1]) == pytest.approx(wanted, abs=0.03 if size > 100 else 0.15)


def test_batches_that_keep_few_are_weighted() -> None:
    skipper = _skipper(Importance(0.05, warmup_samples=600, bits=8), seed=3, adds_logit_offset=True)
    pieces = [whole.narrow(at, at + 32) for whole in _clicks(6, 1) for at in range(0, 512, 32)]
    kept = Batch.concat(list(skipper(pieces)))
    assert kept.logit_offset is not None and not kept.logit_offset.any()
    assert float(kept.weights.std()) > 0.1


@pytest.mark.parametrize("size", [32, 512])
def test_small_batches_are_calibrated_and_later_epochs_are_weighted(size: int) -> None:
    """Nearly every input has an id of its own, which the scout knows by heart from the second epoch on."""
    draw = torch.Generator().manual_seed(1)
    number = 8192
    chance = torch.tensor([0.2, 0.4]).repeat(number // 2)
    labels = (torch.rand(number, generator=draw) < chance).float()
    ids = torch.stack([torch.arange(number) % 2, 2 + torch.arange(number) // 2], dim=1).int()
    whole = Batch(Inputs(torch.zeros(number, 0), ids), labels, torch.arange(number), torch.ones(number))
    skipper = _skipper(Importance(0.3, warmup_samples=500, bits=14), seed=2, adds_logit_offset=True)
    kept = Batch.concat(list(skipper(whole.narrow(at, at + size) for at in range(0, number, size))))
    assert kept.logit_offset is not None
    predicted = torch.sigmoid(torch.logit(chance[kept.index]) + kept.logit_offset)
    # The standard deviation of the mean is 0.009.
    assert float((kept.labels - predicted).mean()) == pytest.approx(0.0, abs=0.02)
    assert skipper.report().details["corrected_by"] == "odds"
    again = Batch.concat(list(skipper([whole])))
    assert again.logit_offset is None and float(again.weights.std()) > 0.1
    assert skipper.report().details["corrected_by"] == "odds, then weights"


@pytest.mark.parametrize("seen", [False, True])
def test_inputs_of_an_earlier_training_are_weighted_and_the_model_stays_right(seen: bool) -> None:
    """The scout knows each input's label: by offsets the logits of the kept ones would be far off."""
    draw = torch.Generator().manual_seed(1)
    number = 8192
    labels = (torch.rand(number, generator=draw) < 0.3).float()
    ids = torch.arange(number, dtype=torch.int32)[:, None]
    whole = Batch(Inputs(torch.zeros(number, 0), ids), labels, torch.arange(number), torch.ones(number))
    before, after = (
        _skipper(Importance(0.3, warmup_samples=500, bits=16, lr=1.0), seed=2, adds_logit_offset=True) for _ in range(2)
    )
    batches = [whole.narrow(at, at + 512) for at in range(0, number, 512)]
    for _ in range(3):
        list(before(batches))
    after.continue_from(before.state_dict(), {}, seen=seen)
    kept = Batch.concat(list(after(batches)))
    shift = torch.zeros(len(kept)) if kept.logit_offset is None else kept.logit_offset
    predicted = torch.sigmoid(math.log(0.3 / 0.7) + shift)
    error = float((kept.weights * (kept.labels - predicted)).mean())
    if seen:
        assert after.report().details["corrected_by"] == "weights"
        assert error == pytest.approx(0.0, abs=0.03)
    else:
        assert abs(error) > 0.05, "which is why slices must not overlap"


def test_by_label_alone_it_is_the_ratio_of_the_shares_kept() -> None:
    policy, batches = Importance(0.3, score="label"), _clicks(20, 0)
    for batch in batches:
        keep = policy.keep_probability(batch)
    assert keep is not None
    positive, negative = float(keep[batch.labels > 0][0]), float(keep[batch.labels == 0][0])
    assert torch.allclose(policy.logit_offset(batch), torch.full((512,), math.log(positive / negative)), atol=0.02)


def test_fresh_inputs_are_kept_whatever_their_label() -> None:
    policy = Importance(0.5, fresh_below=2, warmup_samples=0, bits=8)
    for batch in _clicks(5, 0):
        policy.keep_probability(batch)
    batch.inputs.ids[:5, 0] = torch.arange(1_000, 1_005, dtype=torch.int32)
    policy.keep_probability(batch)
    logit_offset = policy.logit_offset(batch)
    assert not logit_offset[:5].any() and logit_offset[5:].any()


def test_weights_are_one_where_the_odds_correct_and_nothing_is_added_elsewhere() -> None:
    batches = _clicks(10, 0)
    for policy in (Importance(0.5), Combine(Importance(0.5), build_policy("none"))):
        skipper = _skipper(policy, adds_logit_offset=True)
        for batch in skipper(batches):
            assert torch.equal(batch.weights, torch.ones(len(batch)))
            assert (
                batch.logit_offset is not None
                and batch.logit_offset.shape == (len(batch),)
                and batch.logit_offset.any()
            )
        assert skipper.report().details["corrected_by"] == "odds"
    others = (Importance(0.5, correction="weights"), Random(0.5), Combine(Random(0.5), build_policy("none")))
    for policy, adds in ((Importance(0.5), False), *((other, True) for other in others)):
        skipper = _skipper(policy, adds_logit_offset=adds)
        kept = list(skipper(batches))
        assert all(batch.logit_offset is None for batch in kept)
        assert all(float(batch.weights.min()) != 1.0 for batch in kept)
        assert skipper.report().details.get("corrected_by", "weights") == "weights"


def test_a_policy_that_watches_losses_gets_the_models_own() -> None:
    guard = Guard(policy="importance")
    assert all(batch.logit_offset is None for batch in _skipper(guard, adds_logit_offset=True)(_clicks(3, 0)))


def test_inputs_that_wait_are_joined_with_those_of_a_batch_kept_whole() -> None:
    policy = Importance(0.5)
    skipper = _skipper(policy, adds_logit_offset=True)
    first, second, third = _clicks(3, 0)
    handed = list(skipper.push(first))
    policy.set_budget(1.0)
    handed += list(skipper.push(second))
    policy.set_budget(0.5)
    handed += [*skipper.push(third), *skipper.flush()]
    whole = Batch.concat(handed)
    assert whole.logit_offset is not None
    assert not whole.logit_offset[torch.isin(whole.index, second.index)].any()
    assert whole.logit_offset[torch.isin(whole.index, third.index)].all()


def test_what_waits_is_part_of_the_state_also_of_one_of_before_there_were_odds() -> None:
    batches = _clicks(6, 0)
    one, other, old = (_skipper(Importance(0.4), adds_logit_offset=True) for _ in range(3))
    for batch in batches[:3]:
        list(one.push(batch))
    state = one.state_dict()
    assert state["waiting"]["logit_offset"].any()
    other.load_state_dict(state)
    rest, again = list(one(batches[3:])), list(other(batches[3:]))
    for mine, theirs in zip(rest, again, strict=True):
        assert mine.logit_offset is not None and theirs.logit_offset is not None
        assert torch.equal(mine.index, theirs.index) and torch.equal(mine.logit_offset, theirs.logit_offset)
    del state["waiting"]["logit_offset"]
    state["waiting"]["weights"] = state["waiting"]["weights"] * 2
    old.load_state_dict(state)
    first = next(iter(old(batches[3:])))
    waited = len(state["waiting"]["labels"])
    assert (
        first.logit_offset is not None
        and not first.logit_offset[:waited].any()
        and bool((first.weights[:waited] == 2).all())
    )


def test_a_state_that_waits_for_offsets_is_refused_where_there_are_none() -> None:
    one = _skipper(Importance(0.4), adds_logit_offset=True)
    for batch in _clicks(3, 0):
        list(one.push(batch))
    with pytest.raises(ConfigError, match="set adds_logit_offset"):
        _skipper(Importance(0.4)).load_state_dict(one.state_dict())


def test_an_offset_that_the_batch_has_already_stays_part_of_it() -> None:
    plain, shifted = (_skipper(Importance(0.4), adds_logit_offset=True) for _ in range(2))
    batches = _clicks(2, 0)
    mine = list(plain(batches))
    theirs = list(shifted(replace(batch, logit_offset=torch.full((512,), 2.0)) for batch in batches))
    for one, other in zip(mine, theirs, strict=True):
        assert one.logit_offset is not None and other.logit_offset is not None
        assert torch.allclose(one.logit_offset + 2.0, other.logit_offset)


def test_policies_that_say_nothing_or_the_contrary_are_told() -> None:
    class Silent(Random):
        chooses_by_label = True

    class Contrary(Importance):
        def logit_offset(self, batch: Batch) -> Tensor:
            return -super().logit_offset(batch)

    class Dropping(Importance):
        def keep_probability(self, batch: Batch) -> Tensor | None:
            super().keep_probability(batch)
            return batch.labels.clone()

    with pytest.raises(ConfigError, match="has no logit_offset"):
        _skipper(Silent(0.5), adds_logit_offset=True)
    with pytest.raises(AssertionError, match="has no logit_offset"):
        check_policy(lambda: Silent(0.5))
    with pytest.raises(AssertionError, match="drops an input for good by its label"):
        check_policy(lambda: Dropping(0.5, warmup_samples=0, bits=8), decides_by_batch=True)
    check_policy(lambda: Importance(0.5, warmup_samples=0, bits=8), decides_by_batch=True)
    with pytest.raises(AssertionError, match="says an offset of"):
        check_policy(lambda: Contrary(0.5, warmup_samples=0, bits=8), decides_by_batch=True)


def test_a_weighted_loss_refuses_what_it_cannot_add() -> None:
    skipper = _skipper(Importance(0.5), adds_logit_offset=True)
    loss = weighted(nn.BCEWithLogitsLoss(), skipper)
    with pytest.raises(ConfigError, match="leave out adds_logit_offset"):
        loss(torch.zeros(3, requires_grad=True), torch.zeros(3))


def test_labels_between_0_and_1_are_refused() -> None:
    policy, batch = Importance(0.5), _clicks(1, 0)[0]
    batch.labels[3] = 0.5
    policy.keep_probability(batch)
    with pytest.raises(ConfigError, match="needs labels of 0 and 1; set correction to weights"):
        policy.logit_offset(batch)


def test_the_models_losses_add_them_and_their_predictions_do_not() -> None:
    features = [FeatureInfo(name="user", num_rows=12), FeatureInfo(name="item", num_rows=12)]
    ids = torch.randint(0, 12, (8, 2), dtype=torch.int32)
    labels = (torch.arange(8) % 2).float()
    batch = Batch(Inputs(torch.zeros(8, 0), ids), labels, torch.arange(8), torch.rand(8), logit_offset=torch.randn(8))
    for config in (
        DLRMConfig(embedding_dim=4, bottom=(4,), top=(4,)),
        MatrixFactorizationConfig(embedding_dim=4, objective="logistic"),
        TwoTowerConfig(embedding_dim=4, layers=(4,), objective="logistic"),
    ):
        model = build_model(config, features, 0)
        assert model.adds_logit_offset
        logits = model(batch.inputs) + batch.logit_offset
        wanted = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        assert torch.allclose(model.losses(batch), wanted)
        assert torch.allclose(model.loss(batch), (wanted * batch.weights).mean())
    assert not build_model(MatrixFactorizationConfig(objective="bpr"), features, 0).adds_logit_offset
    assert not build_model(TwoTowerConfig(objective="softmax"), features, 0).adds_logit_offset


@pytest.mark.parametrize("power", [1.0, 4.0])
def test_the_offset_of_a_rare_label_at_a_high_power(power: float) -> None:
    # One label in 10,000 is kept always, of the others about half: both labels' offsets are the log of that.
    policy, draw, size = Importance(0.5, score="label", power=power), torch.Generator().manual_seed(0), 4096
    kept: list[list[torch.Tensor]] = [[], []]
    offsets: list[list[torch.Tensor]] = [[], []]
    for i in range(120):
        labels = (torch.rand(size, generator=draw) < 1e-4).float()
        inputs = Inputs(torch.empty(size, 0), torch.zeros(size, 0, dtype=torch.int32))
        batch = Batch(inputs, labels, torch.arange(i * size, (i + 1) * size), torch.ones(size))
        keep = policy.keep_probability(batch)
        assert keep is not None
        offset = policy.logit_offset(batch)
        for label in (0, 1) if i > 40 else ():
            kept[label].append(keep[labels == label])
            offsets[label].append(offset[labels == label])
    share = [float(torch.cat(side).mean()) for side in kept]
    for side in offsets:
        assert float(torch.cat(side).mean()) == pytest.approx(math.log(share[1] / share[0]), abs=0.01)
