import pytest

from slipstream.errors import ConfigError
from slipstream.training import TrainConfig
from slipstream.training.profile import PHASES, Bound, input_bound, profile, recommend, row_bound

SMALL = {
    "data": "unused",
    "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
    "batch_size": 64,
    "threads": 1,
}
SECONDS = dict(zip(PHASES, (1.0, 1.0, 2.0, 2.0, 1.0, 2.0, 1.0), strict=True))


def bound(policy: str, half: float) -> Bound:
    return Bound(policy=policy, skips="rows", overhead=0.0, speed_up={0.5: half})


def test_bounds_are_amdahls():
    # Ten seconds a step, one of them for handing out.
    assert input_bound(SECONDS, 0.5) == pytest.approx(10 / 5.5)
    assert input_bound(SECONDS, 0.5, overhead=0.5) == pytest.approx(10 / 6)
    assert input_bound(SECONDS, 1.0, overhead=0.5) == pytest.approx(10 / 10.5), "deciding costs, too"
    # Two of the ten are row updates.
    assert row_bound(SECONDS, 0.5) == pytest.approx(10 / 9)
    assert row_bound(SECONDS, 1.0) == 1.0


def test_row_skipping_is_recommended_only_where_it_can_pay():
    both = [bound("random", 1.8), bound("saturation", 1.3)]
    assert recommend(SECONDS, both)[0] == "saturation"
    name, reason = recommend(SECONDS, [bound("random", 1.8), bound("saturation", 1.1)])
    assert name == "random" and "20%" in reason and "1.80x" in reason
    assert recommend(SECONDS, [bound("random", 1.8), bound("importance", 1.7)])[0] == "importance"
    name, reason = recommend(SECONDS, [bound("random", 1.1)])
    assert name is None and "1.10x" in reason
    assert recommend(SECONDS, [])[0] is None


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": {"name": "adagrad"}},
        {"optimizer": {"name": "rowwise_adagrad", "dense_name": "adam", "clip": 1.0}, "shuffle": True},
        {"model": {"name": "mf", "embedding_dim": 4}, "optimizer": {"name": "adam"}},
        {"engine": "torch"},
        {"mode": "prequential", "bf16": True},
        {"batch_size": 100_000},
    ],
)
def test_every_phase_is_measured(make_store, settings):
    found = profile(TrainConfig.model_validate({**SMALL, **settings}), steps=2, store=make_store(500))
    assert tuple(found.seconds) == PHASES
    assert all(value >= 0 for value in found.seconds.values())
    assert found.seconds["row update"] > 0 and found.seconds["row gradients"] > 0
    assert found.step_seconds == pytest.approx(sum(found.seconds.values()))
    bounds = {entry.policy: entry for entry in found.bounds}
    assert "none" not in bounds and bounds["random"].overhead > 0
    assert bounds["psse"].skips == "rows" and bounds["psse"].speed_up[0.5] >= 1


def test_a_profile_leaves_the_policy_out_and_reads_back(make_store):
    settings = {**SMALL, "policy": {"name": "random", "budget": 0.1}}
    found = profile(TrainConfig.model_validate(settings), steps=2, store=make_store(500))
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_steps_are_at_least_one(make_store):
    with pytest.raises(ConfigError, match="steps must be at least 1"):
        profile(TrainConfig.model_validate(SMALL), steps=0, store=make_store(500))
