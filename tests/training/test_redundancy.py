import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.errors import ConfigError
from slipstream.training import TrainConfig
from slipstream.training.redundancy import BUDGETS, SHARES, fit_curve, redundancy

SMALL = {
    "data": "unused",
    "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8], "first_order": True},
    "optimizer": {"name": "adagrad", "lr": 0.05, "embedding_lr": 0.1},
    "batch_size": 64,
    "threads": 1,
}


@given(a=st.floats(0.7, 0.99), b=st.floats(0.001, 0.05), c=st.floats(0.1, 1.0))
def test_the_curve_is_found_again(a, b, c):
    fit = fit_curve({share: a - b * share**-c for share in SHARES})
    assert fit.error < 1e-3
    for budget in BUDGETS:
        assert fit.cost(budget) == pytest.approx(b * (budget**-c - 1), abs=2e-3)


def test_data_that_does_not_help_costs_nothing():
    fit = fit_curve({0.125: 0.8, 0.25: 0.8, 0.5: 0.799, 1.0: 0.798})
    assert fit.b == 0 and fit.cost(0.25) == 0
    assert fit.a == pytest.approx(0.79925)


def test_the_limit_is_at_most_one():
    # Straight in log n: without the bound, a small c would fit best and its limit would be far above 1.
    fit = fit_curve({0.125: 0.7, 0.25: 0.8, 0.5: 0.9, 1.0: 0.99})
    assert fit.a <= 1 and fit.b > 0


def test_more_data_is_better_and_the_cost_falls_with_the_budget(make_store):
    found = redundancy(TrainConfig.model_validate(SMALL), seeds=2, store=make_store(6000))
    assert [point.share for point in found.measured] == list(SHARES)
    assert found.measured[0].auc < found.measured[-1].auc
    assert found.measured[0].auc_std > 0
    costs = [found.cost[budget] for budget in BUDGETS]
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1] >= 0
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_shares_and_seeds_out_of_range_are_refused(make_store):
    config, store = TrainConfig.model_validate(SMALL), make_store(500)
    with pytest.raises(ConfigError, match="seeds"):
        redundancy(config, seeds=0, store=store)
    for shares in ((0.5, 1.0), (0.25, 0.5, 0.75), (0.0, 0.5, 1.0)):
        with pytest.raises(ConfigError, match="shares"):
            redundancy(config, shares=shares, store=store)
