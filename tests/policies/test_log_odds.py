"""What choosing by the label does to the odds, and that adding it to the logits gives the full data's model back."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from slipstream.data.batch import Batch, Inputs
from slipstream.data.schema import FeatureInfo
from slipstream.errors import ConfigError
from slipstream.models import DLRMConfig, MatrixFactorizationConfig, TwoTowerConfig, build_model
from slipstream.policies import Combine, Guard, Importance, Random, Skipper, build_policy

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
    shift = 0.0 if whole.log_odds is None else whole.log_odds.double()
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
        kept = list(_skipper(policy, seed=seed, adds_log_odds=by_odds)(batches))
        errors.append(float((_fit(kept) - _fit(batches)).square().sum()))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("score", ["scout", "label"])
def test_the_full_datas_model_comes_back_and_varies_less_than_by_weights(score: Literal["scout", "label"]) -> None:
    by_odds, by_weights = _error(score, 0.2, by_odds=True), _error(score, 0.2, by_odds=False)
    assert by_odds < 0.05
    assert by_odds < by_weights


def test_by_label_alone_it_is_the_ratio_of_the_shares_kept() -> None:
    policy, batches = Importance(0.3, score="label"), _clicks(20, 0)
    for batch in batches:
        keep = policy.keep_probability(batch)
    assert keep is not None
    positive, negative = float(keep[batch.labels > 0][0]), float(keep[batch.labels == 0][0])
    assert torch.allclose(policy.log_odds(batch), torch.full((512,), math.log(positive / negative)), atol=1e-5)


def test_fresh_inputs_are_kept_whatever_their_label() -> None:
    policy = Importance(0.5, fresh_below=2, warmup_samples=0, bits=8)
    for batch in _clicks(5, 0):
        policy.keep_probability(batch)
    batch.inputs.ids[:5, 0] = torch.arange(1_000, 1_005, dtype=torch.int32)
    policy.keep_probability(batch)
    log_odds = policy.log_odds(batch)
    assert not log_odds[:5].any() and log_odds[5:].any()


def test_weights_are_one_where_the_odds_correct_and_nothing_is_added_elsewhere() -> None:
    batches = _clicks(10, 0)
    for policy in (Importance(0.5), Combine(Importance(0.5), build_policy("none"))):
        skipper = _skipper(policy, adds_log_odds=True)
        for batch in skipper(batches):
            assert torch.equal(batch.weights, torch.ones(len(batch)))
            assert batch.log_odds is not None and batch.log_odds.shape == (len(batch),) and batch.log_odds.any()
        assert skipper.report().details["corrected_by"] == "odds"
    others = (Importance(0.5, correction="weights"), Random(0.5), Combine(Random(0.5), build_policy("none")))
    for policy, adds in ((Importance(0.5), False), *((other, True) for other in others)):
        skipper = _skipper(policy, adds_log_odds=adds)
        kept = list(skipper(batches))
        assert all(batch.log_odds is None for batch in kept)
        assert all(float(batch.weights.min()) != 1.0 for batch in kept)
        assert skipper.report().details.get("corrected_by", "weights") == "weights"


def test_a_policy_that_watches_losses_gets_the_models_own() -> None:
    guard = Guard(policy="importance")
    assert all(batch.log_odds is None for batch in _skipper(guard, adds_log_odds=True)(_clicks(3, 0)))


def test_inputs_that_wait_are_joined_with_those_of_a_batch_kept_whole() -> None:
    policy = Importance(0.5)
    skipper = _skipper(policy, adds_log_odds=True)
    first, second, third = _clicks(3, 0)
    handed = list(skipper.push(first))
    policy.set_budget(1.0)
    handed += list(skipper.push(second))
    policy.set_budget(0.5)
    handed += [*skipper.push(third), *skipper.flush()]
    whole = Batch.concat(handed)
    assert whole.log_odds is not None
    assert not whole.log_odds[torch.isin(whole.index, second.index)].any()
    assert whole.log_odds[torch.isin(whole.index, third.index)].all()


def test_what_waits_is_part_of_the_state_also_of_one_of_before_there_were_odds() -> None:
    batches = _clicks(6, 0)
    one, other, old = (_skipper(Importance(0.4), adds_log_odds=True) for _ in range(3))
    for batch in batches[:3]:
        list(one.push(batch))
    state = one.state_dict()
    assert state["waiting"]["log_odds"].any()
    other.load_state_dict(state)
    rest, again = list(one(batches[3:])), list(other(batches[3:]))
    for mine, theirs in zip(rest, again, strict=True):
        assert mine.log_odds is not None and theirs.log_odds is not None
        assert torch.equal(mine.index, theirs.index) and torch.equal(mine.log_odds, theirs.log_odds)
    del state["waiting"]["log_odds"]
    state["waiting"]["weights"] = state["waiting"]["weights"] * 2
    old.load_state_dict(state)
    first = next(iter(old(batches[3:])))
    waited = len(state["waiting"]["labels"])
    assert (
        first.log_odds is not None and not first.log_odds[:waited].any() and bool((first.weights[:waited] == 2).all())
    )


def test_labels_between_0_and_1_are_refused() -> None:
    policy, batch = Importance(0.5), _clicks(1, 0)[0]
    batch.labels[3] = 0.5
    policy.keep_probability(batch)
    with pytest.raises(ConfigError, match="needs labels of 0 and 1; set correction to weights"):
        policy.log_odds(batch)


def test_the_models_losses_add_them_and_their_predictions_do_not() -> None:
    features = [FeatureInfo(name="user", num_rows=12), FeatureInfo(name="item", num_rows=12)]
    ids = torch.randint(0, 12, (8, 2), dtype=torch.int32)
    labels = (torch.arange(8) % 2).float()
    batch = Batch(Inputs(torch.zeros(8, 0), ids), labels, torch.arange(8), torch.rand(8), log_odds=torch.randn(8))
    for config in (
        DLRMConfig(embedding_dim=4, bottom=(4,), top=(4,)),
        MatrixFactorizationConfig(embedding_dim=4, objective="logistic"),
        TwoTowerConfig(embedding_dim=4, layers=(4,), objective="logistic"),
    ):
        model = build_model(config, features, 0)
        assert model.adds_log_odds
        logits = model(batch.inputs) + batch.log_odds
        wanted = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        assert torch.allclose(model.losses(batch), wanted)
        assert torch.allclose(model.loss(batch), (wanted * batch.weights).mean())
    assert not build_model(MatrixFactorizationConfig(objective="bpr"), features, 0).adds_log_odds
    assert not build_model(TwoTowerConfig(objective="softmax"), features, 0).adds_log_odds
