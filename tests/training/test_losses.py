"""Losses of single samples: of every model, and as the trainer tells them to a policy that wants them."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from slipstream.data.batch import Batch
from slipstream.errors import ConfigError
from slipstream.models import MODELS, build_model
from slipstream.policies import Policy
from slipstream.training import TrainConfig, Trainer, train

SMALL = {
    "data": "unused",
    "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
    "batch_size": 64,
    "threads": 1,
}


class Listening(Policy):
    """Skips nothing and keeps what it hears."""

    name = "listening"

    def __init__(self, wants: bool) -> None:
        self.wants_losses = wants
        self.heard: list[tuple[Batch, Tensor]] = []

    def observe_losses(self, batch: Batch, losses: Tensor) -> None:
        self.heard.append((batch, losses))


def _trainer(store, policy: Policy) -> Trainer:
    trainer = Trainer(TrainConfig.model_validate(SMALL).resolved(), store)
    trainer.skipper.policy = policy
    return trainer


@pytest.mark.parametrize("name", MODELS)
def test_the_weighted_mean_of_the_losses_is_the_loss(make_store, name) -> None:
    store = make_store(500)
    config = TrainConfig.model_validate({**SMALL, "model": {"name": name, "embedding_dim": 4}}).model
    model = build_model(config, store.features, store.num_dense)
    batch = next(iter(store.batches(64)))
    batch.weights = torch.rand(64) + 0.5
    losses = model.losses(batch)
    assert losses.shape == (64,)
    assert losses.dtype == torch.float32
    torch.testing.assert_close((losses * batch.weights).mean(), model.loss(batch))


def test_losses_of_pairs_are_refused(make_store) -> None:
    settings = {**SMALL, "model": {"name": "mf", "objective": "bpr"}, "policy": {"name": "guard"}}
    with pytest.raises(ConfigError, match="BPR has no loss of single samples"):
        train(TrainConfig.model_validate(settings), store=make_store(500))


def test_a_policy_hears_each_batch_once_before_its_step_and_changes_nothing(make_store) -> None:
    store = make_store(1000)
    told, untold = _trainer(store, listening := Listening(True)), _trainer(store, deaf := Listening(False))
    fresh = _trainer(store, Listening(False)).model
    forwards = []
    told.model.register_forward_hook(lambda *_: forwards.append(1))
    _, logits = told.run()
    torch.testing.assert_close(torch.from_numpy(logits), torch.from_numpy(untold.run()[1]))
    assert not deaf.heard
    assert len(listening.heard) == told.steps == len(forwards)  # predictions call forward itself
    first, losses = listening.heard[0]
    assert not losses.requires_grad
    torch.testing.assert_close(losses, fresh.losses(first).detach())
    assert torch.cat([batch.index for batch, _ in listening.heard]).tolist() == list(range(*told.train_range))


@pytest.mark.parametrize("settings", [{}, {"bf16": True}, {"mode": "prequential", "chunk_size": 512}])
def test_what_the_guard_decides_is_in_the_metrics_and_the_report(make_store, tmp_path, settings) -> None:
    policy = {"name": "guard", "first_copy": 256, "measure_every": 2, "tolerance": 0.9, "auc_tolerance": 0.4}
    config = TrainConfig.model_validate({**SMALL, **settings, "policy": policy, "out": tmp_path / "run"})
    result = train(config, store=make_store(6000))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    told = [line for line in lines if line["event"] == "policy"]
    assert [line["reason"] for line in told] == [move["reason"] for move in result.policy_report["moves"]]
    assert told and told[0]["policy"] == "guard" and {"samples", "trained", "budget", "seconds"} <= told[0].keys()
    # So loose that it skips wherever the curve flattens.
    assert result.share_of_inputs_trained < 1.0 or any("flatten" in line["reason"] for line in told)
