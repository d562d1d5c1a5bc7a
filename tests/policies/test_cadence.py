from __future__ import annotations

import pytest
from tests.training.conftest import make_store as make_store
from torch import nn

from slipstream import EmbeddingBag
from slipstream.errors import ConfigError
from slipstream.policies import PSSE, Combine, Random, Saturation, Skipper, Subsampling
from slipstream.policies.cadence import Cadence
from slipstream.training import TrainConfig, train


@pytest.mark.parametrize(
    ("batches", "expected"), [(100_000, 500), (5_000, 500), (4_999, 499), (29, 2), (10, 1), (2, 1)]
)
def test_a_warm_up_that_was_not_set_is_at_most_a_tenth_of_the_training(batches: int, expected: int) -> None:
    cadence = Cadence("x", None, 200)
    assert cadence.warmup_steps == 500, "as long as the length is not known"
    cadence.fit(batches)
    assert cadence.warmup_steps == expected
    assert [step for step in range(1_000) if cadence.is_due(step)] == [*range(expected, 1_000, 200)]


def test_one_that_was_set_is_kept_or_refused() -> None:
    for steps in (0, 1, 28, 500):
        cadence = Cadence("x", steps, 1)
        cadence.fit(501 if steps == 500 else 30)
        assert cadence.warmup_steps == steps and cadence.is_due(max(steps, 1)) and not cadence.is_due(0)
    with pytest.raises(ConfigError, match="warmup_steps=500 leaves no decision in a training of 29 batches"):
        Cadence("x", 500, 1).fit(29)
    with pytest.raises(ConfigError, match="use more samples"):
        Cadence("x", None, 1).fit(1)


@pytest.mark.parametrize("policy", [PSSE, Saturation, Subsampling])
def test_policies_of_rows_hear_of_the_length(policy) -> None:
    made = policy()
    combined = Combine(Random(0.5), made)
    combined.check_length(300)
    assert made.report()["warmup_steps"] == 15, "half of the inputs are left"
    combined.set_budget(0.25)
    combined.check_length(401)
    assert made.report()["warmup_steps"] == 20, "half again: the other half is the rows'"
    Combine(Random(1.0), made).check_length(300)
    assert made.report()["warmup_steps"] == 30
    with pytest.raises(ConfigError, match="of 29 batches"):
        Combine(Random(0.1), policy(warmup_steps=29)).check_length(290)


@pytest.mark.parametrize("policy", [PSSE, Saturation, Subsampling])
def test_a_loop_of_ones_own_has_the_same_default(policy) -> None:
    def warm_up(total: int | None, size: int | None, **settings: int) -> int:
        made = policy(**settings)
        model = nn.ModuleDict({"table": EmbeddingBag(10, 4)})
        Skipper(model, made, batch_size=size, total_samples=total)
        return made.report()["warmup_steps"]

    assert warm_up(2_999, 10) == 30 and warm_up(100_000, 10) == 500
    assert warm_up(None, 10) == warm_up(3_000, None) == 500, "the length is not known"
    assert warm_up(10, 10) == 1 and warm_up(100, 10, warmup_steps=50) == 50, "too short, and not refused"


@pytest.mark.parametrize("name", ["psse", "saturation", "subsampling"])
def test_a_short_training_decides_with_nothing_but_a_name(make_store, name: str) -> None:
    small = {
        "data": "unused",
        "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
        "batch_size": 64,
        "policy": name,
    }
    result = train(TrainConfig.model_validate(small), store=make_store(2000))
    assert result.policy_report["warmup_steps"] == 2 and result.policy_report["decisions"] == 1
