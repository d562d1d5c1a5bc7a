"""What can be seen of several ranks in one process."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.conftest import write_store
from torch import nn

from slipstream import distributed
from slipstream.data import Batch
from slipstream.distributed import Ledger, exactly_once, hearing
from slipstream.embedding import Embedding
from slipstream.errors import ConfigError
from slipstream.policies import (
    PSSE,
    Combine,
    Guard,
    Importance,
    Policy,
    RowImportance,
    Saturation,
    Skipper,
    Subsampling,
)
from slipstream.training import TrainConfig
from slipstream.training import ranks as training_ranks
from slipstream.training.loop import Trainer
from slipstream.training.ranks import Ranks


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


@pytest.mark.parametrize(
    "policy", [Subsampling(), Combine(Importance(0.5), Subsampling()), RowImportance()], ids=lambda p: p.name
)
def test_draws_for_each_sample_are_refused_at_the_start(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "need_group", lambda: None)
    with pytest.raises(ConfigError, match=r"(subsampling|row_importance) draws for each sample"):
        Skipper(Embedding(4, 2), hearing.over_ranks(policy), batch_size=8)


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


def set_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)


class _One(Ranks):
    """Ranks of a training that is one process's."""

    def part(self, batch: Batch) -> Batch:
        return batch

    def mean_dense(self, model: nn.Module, loss: float) -> float:
        return loss

    def exchange(self, model: nn.Module, *, send_frozen: bool) -> None:
        pass


def test_the_times_of_a_step_on_ranks_are_those_of_its_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch)
    model = {"name": "dlrm", "embedding_dim": 4, "bottom": [4], "top": [4]}
    settings = {"data": "", "model": model, "batch_size": 64, "threads": 1, "policy": {"name": "guard"}}
    trainer = Trainer(TrainConfig.model_validate(settings).resolved(), write_store(tmp_path / "data", 640))
    trainer.step._ranks = _One()
    laps: list[str] = []
    monkeypatch.setattr(trainer.training, "lap", lambda phase=None: laps.append(phase))
    batch = trainer.store.take(np.arange(64))
    trainer.step(batch, 0)
    assert laps == ["forward", "backward", "policy", "backward", "update"]


def test_ranks_of_other_settings_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch)
    on_another: dict[str, bytes] = {}

    def compare(values: dict[str, torch.Tensor]) -> list[str]:
        found = {name.partition(" (")[0]: value.numpy().tobytes() for name, value in values.items()}
        return [name for name, value in found.items() if on_another.setdefault(name, value) != value]

    monkeypatch.setattr(distributed, "same_everywhere", compare)
    ranks = Ranks()
    settings = {"data": "a", "out": "a", "seed": 3, "policy": {"name": "importance", "budget": 0.5}}
    ranks.check_settings(TrainConfig.model_validate(settings))
    ranks.check_settings(TrainConfig.model_validate({**settings, "data": "b", "out": "b", "threads": 2}))
    others = [
        {"seed": 4},
        {"out": None},
        {"optimizer": {"lr": 0.5}},
        {"checkpoint": {"steps": 5}},
        {"continue_from": "c"},
    ]
    for other in others:
        with pytest.raises(ConfigError, match="the ranks have different settings"):
            ranks.check_settings(TrainConfig.model_validate({**settings, **other}))
    monkeypatch.setattr(
        training_ranks, "versions", lambda: {"slipstream-rec": version("slipstream-rec"), "torch": "1.0"}
    )
    with pytest.raises(ConfigError, match=r"different versions of torch \(here 1\.0\); install the same"):
        ranks.check_settings(TrainConfig.model_validate(settings))
