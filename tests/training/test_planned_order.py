"""The trainer carries out the order that a policy plans."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from slipstream.data.batches import Batches, checked_order
from slipstream.errors import ConfigError
from slipstream.training import TrainConfig, Trainer, train
from slipstream.training.samples import StoredSamples

SMALL = {
    "data": "unused",
    "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
    "batch_size": 64,
    "threads": 1,
}
SLIPSTREAM = {
    "name": "slipstream",
    "hot_bytes": 16 * 100,
    "snapshot_start": 2,
    "snapshot_share": 0.1,
    "sample_rate": 0.5,
    "alpha": 1,
    "band": 0.25,
}


def test_batches_in_an_order_of_ones_own(make_store) -> None:
    store = make_store(1000)
    order = torch.randperm(900)
    batches = store.batches(64, start=100, order=order)
    for _ in range(2):  # the same in each pass
        found = list(batches)
        assert torch.cat([batch.index for batch in found]).tolist() == (order + 100).tolist()
        assert torch.equal(torch.cat([batch.inputs.ids for batch in found]), store.ids[order + 100])
    iterator = iter(batches)
    next(iterator)
    assert next(iter(batches)).index.tolist() == (order[64:128] + 100).tolist()


def test_an_order_that_was_checked_is_not_checked_again(make_store, monkeypatch) -> None:
    store, order = make_store(100), torch.randperm(90)
    checked = checked_order(order, 90)
    with pytest.raises(ConfigError, match=r"order must be int64 \[91\]"):
        store.batches(64, stop=91, order=checked)
    monkeypatch.setattr("slipstream.data.batches.checked_order", None)
    found = torch.cat([batch.index for batch in store.batches(64, start=10, order=checked)])
    assert found.tolist() == (order + 10).tolist()


@pytest.mark.parametrize("order", [torch.arange(9), torch.arange(10) + 1, torch.zeros(10, dtype=torch.int64)])
def test_what_is_no_order_is_refused(make_store, order) -> None:
    with pytest.raises(ConfigError, match="order"):
        make_store(10).batches(2, order=order)
    with pytest.raises(ConfigError, match="exclude each other"):
        Batches(make_store(10, name="other"), 2, order=torch.arange(10), shuffle_seed=1)


def test_policies_read_the_training_samples(make_store) -> None:
    store = make_store(100)
    samples = StoredSamples(store, 10, 90, 16)
    assert (samples.num_samples, samples.batch_size) == (80, 16)
    assert samples.take(torch.tensor([79, 0])).index.tolist() == [89, 10]
    assert [len(batch) for batch in samples.batches(50)] == [50, 30]


@pytest.mark.parametrize("order", ["cold_then_hot", "interleaved"])
def test_the_order_is_carried_out(make_store, order: str) -> None:
    seen: list[int] = []
    store = make_store(2000)
    config = TrainConfig.model_validate(
        {**SMALL, "policy": {"name": "order", "order": order, "hot_bytes": 16 * 85, "sample_share": 1.0}, "epochs": 2}
    )
    trainer = Trainer(config.resolved(), store)
    push = trainer.skipper.push
    trainer.skipper.push = lambda batch: (seen.extend(batch.index.tolist()), push(batch))[1]  # pyright: ignore
    trainer.run()
    assert len(seen) == 3600 and seen[:1800] == seen[1800:] and sorted(seen[:1800]) == list(range(1800))
    falls = sum(later < earlier for earlier, later in pairwise(seen[:1800]))
    assert falls == 1 if order == "cold_then_hot" else falls > 4


def test_published_slipstream_trains(make_store) -> None:
    result = train(TrainConfig.model_validate({**SMALL, "policy": SLIPSTREAM}), store=make_store(6000))
    assert 0 < result.share_of_inputs_trained <= 1
    assert result.auc > 0.5


def test_periodic_slipstream_trains_on_a_stream(make_store) -> None:
    policy = {"name": "slipstream", "mode": "periodic", "every": 20, "window": 5, "alpha": 1, "band": 0.25}
    settings = {**SMALL, "mode": "prequential", "chunk_size": 500, "score_from": 1000, "policy": policy}
    result = train(TrainConfig.model_validate(settings), store=make_store(6000))
    assert 0 < result.share_of_inputs_trained <= 1


@pytest.mark.parametrize("settings", [{"mode": "prequential"}, {"shuffle": True}])
def test_streams_and_shuffles_refuse_an_order(settings) -> None:
    for policy in ("order", SLIPSTREAM):
        with pytest.raises(ValidationError, match="orders the samples: use mode=holdout and shuffle=false"):
            TrainConfig.model_validate({**SMALL, **settings, "policy": policy})


@pytest.mark.parametrize(
    ("planned", "said"),
    [
        (torch.arange(50), r"it is int64 \[50\]"),
        (torch.arange(90).float(), r"it is float32 \[90\]"),
        (torch.arange(90) + 1, "it has numbers from 1 to 90"),
        (torch.arange(90).clamp_(min=7), "it leaves 7 out, number 0 the first"),
        ([0, 1], "it is a list"),
    ],
)
def test_a_policy_that_plans_no_order_is_told_what_a_plan_is(make_store, planned, said: str) -> None:
    """Such as one that means to leave samples out; several ranks would count them at the end, and say less."""
    config = TrainConfig.model_validate({**SMALL, "holdout": 0.1, "policy": {"name": "order", "hot_bytes": 1600}})
    trainer = Trainer(config.resolved(), make_store(100))
    trainer.skipper.policy.plan = lambda data: planned  # type: ignore[method-assign, assignment]
    rule = r"^policy 'order': what plan returns must be int64 \[90\], each number from 0 to 89 once; "
    with pytest.raises(ConfigError, match=rule + said + ".*; to leave samples out, .*keep_probability of 0"):
        trainer.run()
    assert trainer.steps == 0
