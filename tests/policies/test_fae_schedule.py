"""FAE's scheduler on a case worked out by hand, and carried out by the trainer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.policies.test_slipstream import COLD, DIM, HOT, Data, OneTable
from tests.training.conftest import make_store as make_store

from slipstream.data.store import Store
from slipstream.policies import Order
from slipstream.policies.fae_schedule import LEAST, Rate, Runs
from slipstream.training import TrainConfig, Trainer


def test_the_rate_by_hand() -> None:
    rate = Rate(0.5, patience=2)
    losses = [0.70, 0.69, 0.71, 0.70, 0.70, 0.69, 0.69, 0.68, 0.72, 0.73, 0.74]
    # The first has nothing to compare with. Falling: 1 calm. Rising: halved. Equal counts as calm; two double.
    expected = [0.5, 0.5, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0, 0.5, 0.25, 0.125]
    assert [rate.transition(loss) for loss in losses] == expected
    for loss in range(1, 20):
        rate.transition(float(loss))
    assert rate.share == LEAST
    for _ in range(40):
        rate.transition(0.0)
    assert rate.share == 1.0


def test_the_runs_by_hand() -> None:
    # 5 cold and 20 hot batches of 4.
    cold, hot = torch.arange(20), torch.arange(20, 100)
    runs = Runs(cold, hot, 4, Rate(0.5, patience=4))
    found = []
    for loss in (0.70, 0.60, 0.65, 0.60, 0.66, 0.55, 0.5, 0.4):
        run = runs.next(loss)
        found.append(None if run is None else (int(run[0]), run.numel()))
    # Half of 5 cold batches: 2 (rounded to even); half of the hot: 10. The loss rose: a quarter: 1 cold batch, then 5
    # hot. It rose: an eighth: 1 cold, 2 hot (of 2.5); then the last cold batch, then all hot ones that are left.
    assert found == [(0, 8), (20, 40), (8, 4), (60, 20), (12, 4), (80, 8), (16, 4), (88, 12)]
    assert runs.next(0.3) is None
    assert runs.next(0.2).tolist() == [0, 1, 2, 3]  # the rate goes on: an eighth again
    assert runs.handed_out == 9


def test_each_input_but_the_tested_is_trained_once_and_it_goes_on_from_its_state() -> None:
    def policy() -> Order:
        made = Order("adaptive", hot_bytes=4 * 4 * DIM, sample_share=1.0, test_samples=5, rate=0.25)
        made.attach({"item.weight": OneTable().item.table}, seed=0)
        assert made.plan(Data()) is None and made.plans_order and made.plans_runs
        return made

    one, two = policy(), policy()
    runs = [one.next_run(loss) for loss in (0.9, 0.8, 0.85)]
    two.load_state_dict(one.state_dict())
    while (run := one.next_run(0.8)) is not None:
        assert torch.equal(run, two.next_run(0.8))
        runs.append(run)
    assert two.next_run(0.8) is None and one.report() == two.report()
    tested = one.test_positions().tolist()
    assert len(tested) == 5 and sorted(torch.cat(runs).tolist() + tested) == list(range(40))
    for run in runs:
        assert set(run.tolist()) <= set(COLD) or set(run.tolist()) <= set(HOT)


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_trainer_asks_for_the_runs(make_store: Callable[..., Store], epochs: int) -> None:
    policy = {"name": "order", "order": "adaptive", "hot_bytes": 16 * 85, "sample_share": 1.0, "test_samples": 200}
    settings = {
        "data": "unused",
        "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
        "batch_size": 64,
        "threads": 1,
        "policy": policy,
        "epochs": epochs,
    }
    trainer = Trainer(TrainConfig.model_validate(settings).resolved(), make_store(2000))
    seen: list[int] = []
    push = trainer.skipper.push
    trainer.skipper.push = lambda batch: (seen.extend(batch.index.tolist()), push(batch))[1]  # type: ignore[method-assign]
    trainer.run()
    tested = set(trainer.skipper.policy.test_positions().tolist())
    assert len(tested) == 200 and sorted(seen) == sorted([i for i in range(1800) if i not in tested] * epochs)
    report = trainer.skipper.report().details
    assert report["order"] == "adaptive" and report["runs"] >= 4 * epochs
