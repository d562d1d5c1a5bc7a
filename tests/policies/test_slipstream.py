"""Published Slipstream on a case worked out by hand, its form for streams, and order alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from tests.policies.support import TwoTables
from torch import Tensor, nn

from slipstream.data.batch import Batch, Inputs
from slipstream.embedding import Embedding
from slipstream.errors import ConfigError
from slipstream.policies import Combine, Order, Policy, Random, Skipper, Slipstream, build_policy
from slipstream.policies.hot_split import interleave

DIM = 2
MOVES = (0.01, 0.03, 0.06, 0.2)
"""How far the hot rows 0 to 3 move in one dimension between the snapshots."""


class OneTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.item = Embedding(12, DIM)


class Data:
    """40 inputs of one column; every fifth is cold (rows 4-11, once each), the others are 0, 1, 2, 3 in turn."""

    batch_size = 4
    num_samples = 40

    def __init__(self) -> None:
        cold, hot = iter(range(4, 12)), iter(list(range(4)) * 8)
        self.ids = torch.tensor([[next(cold) if i % 5 == 4 else next(hot)] for i in range(40)], dtype=torch.int32)

    def take(self, positions: Tensor) -> Batch:
        size = positions.numel()
        inputs = Inputs(torch.empty(size, 0), self.ids[positions])
        return Batch(inputs, torch.zeros(size), positions, torch.ones(size))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for piece in torch.arange(40).split(batch_size):
            yield self.take(piece)


COLD = list(range(4, 40, 5))
HOT = [i for i in range(40) if i % 5 != 4]
SETTINGS = {
    "hot_bytes": 4 * 4 * DIM,
    "sample_share": 1.0,
    "snapshot_start": 1,
    "snapshot_share": 0.25,
    "sample_rate": 1,
}


def run(policy: Slipstream, epochs: int = 1, after: Callable[[int, OneTable], None] | None = None) -> list[list[int]]:
    """Trains (by moving rows as MOVES says after hot batch 1); the positions trained on in each epoch."""
    data, model = Data(), OneTable()
    skipper = Skipper(model, policy, batch_size=4)
    order = skipper.plan(data)
    assert order is not None
    trained: list[list[int]] = []
    for _ in range(epochs):
        trained.append([])
        for batch in skipper(data.take(piece) for piece in order.split(4)):
            trained[-1] += batch.index.tolist()
            if skipper.steps == 2 + 2:  # two cold batches, hot batches 0 and 1
                with torch.no_grad():
                    model.item.weight[:4, 1] += torch.tensor(MOVES)
    return trained


def test_the_published_scheme_by_hand() -> None:
    policy = Slipstream(0.75, **SETTINGS)
    first, second = run(policy, epochs=2)
    # Order: all cold inputs, then all hot ones. S = 1, E = 1 + 0.25 · 8 = 3: 12 hot inputs are trained before the
    # decision. T = 0.05 would drop rows 0 and 1, half of the sample; T = 0.025 drops row 0: a quarter, D ± 0.08.
    left = HOT[12:]
    kept = [i for i in left if Data().ids[i] != 0]
    assert first == COLD + HOT[:12] + kept and second == first
    assert len(left) - len(kept) == 5
    report = policy.report()
    assert report["threshold"] == 0.025 and report["bisection_steps"] == 2 and report["stale_rows"] == 1
    assert report["share_of_sample_dropped"] == 0.25 and report["sampled_inputs"] == 20
    assert report["share_of_inputs_hot"] == 0.8 and report["share_of_rows_hot"] == pytest.approx(4 / 12)
    assert report["dropped"] == 10


def test_a_band_that_is_never_met_drops_nothing() -> None:
    policy = Slipstream(0.62, band=0.01, **SETTINGS)  # 0.38 ± 0.01 of four rows: a quarter or a half
    assert run(policy) == [COLD + HOT]
    assert policy.report()["threshold"] is None and policy.report()["stale_rows"] == 0


def test_a_budget_of_one_is_order_alone() -> None:
    assert run(Slipstream(1.0, **SETTINGS)) == [COLD + HOT]


@pytest.mark.parametrize("policy", [Slipstream(0.75, **SETTINGS), Order(), Combine(Order(), Random(0.5, level="rows"))])
def test_what_plans_is_refused_where_nothing_was_planned(policy: Policy) -> None:
    skipper = Skipper(OneTable(), policy, batch_size=4)
    with pytest.raises(ConfigError, match=r"order of the samples, and nothing was planned; call skipper\.plan"):
        next(skipper.push(Data().take(torch.arange(4))))


def test_kept_inputs_are_not_reweighted() -> None:
    data, policy = Data(), Slipstream(0.75, **SETTINGS)
    skipper = Skipper(OneTable(), policy, batch_size=4)
    order = skipper.plan(data)
    assert order is not None
    # Nothing moves: all rows are stale at any T, which meets no band below 1; the weights stay as they are.
    for batch in skipper(data.take(piece) for piece in order.split(4)):
        assert (batch.weights == 1).all()


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 7])
def test_it_goes_on_from_its_state(cut: int) -> None:
    data = Data()

    def steps(policy: Slipstream, model: OneTable, pieces: list[Tensor], step: int) -> list[list[float] | None]:
        seen = []
        for number, piece in enumerate(pieces, step):
            keep = policy.keep_probability(data.take(piece))
            seen.append(None if keep is None else keep.tolist())
            if number == 3:
                with torch.no_grad():
                    model.item.weight[:4, 1] += torch.tensor(MOVES)
        return seen

    model, whole = OneTable(), Slipstream(0.75, **SETTINGS)
    other, before, later = OneTable(), Slipstream(0.75, **SETTINGS), Slipstream(0.75, **SETTINGS)
    for one, policy in ((model, whole), (other, before), (other, later)):
        policy.attach({"item.weight": one.item.table}, seed=0)
    order = whole.plan(data)
    assert order is not None
    pieces = list(order.split(4))
    before.plan(data)
    expected = steps(whole, model, pieces, 0)
    found = steps(before, other, pieces[:cut], 0)
    later.load_state_dict(before.state_dict())
    assert found + steps(later, other, pieces[cut:], cut) == expected
    with pytest.raises(ConfigError, match="mode 'once', not 'periodic'"):
        Slipstream(mode="periodic").load_state_dict(before.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0}, r"budget must be in \(0, 1\], got 0"),
        ({"budget": 0.95}, r"0.05 ± 0.08, must lie in \(0, 1\): budget must be in \(0.08, 0.92\), or 1"),
        ({"budget": 0.05}, r"budget must be in \(0.08, 0.92\)"),
        ({"hot_bytes": 0}, r"hot_bytes must be in \(0, \d+\], the memory of this machine, got 0"),
        ({"hot_bytes": 1 << 60}, r"hot_bytes must be in \(0, \d+\], the memory of this machine"),
        ({"alpha": 0}, "alpha: .*greater than or equal to 1"),
        ({"mode": "periodic", "every": 10, "window": 10}, r"window must be in \[1, 9\], below every, got 10"),
        ({"sample_share": 0}, r"sample_share must be in \(0, 1\], got 0"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_policy({"name": "slipstream", **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 2}, r"alpha must be in \[1, 1\], the lookups of an input, got 2"),
        ({"alpha_per_bag": 1}, "alpha_per_bag needs multi-hot features"),
        ({"snapshot_start": 6}, r"32 of 40 inputs are hot, 8 batches: .*set snapshot_start in \[0, 5\]"),
        ({"snapshot_share": 1.0}, "raise hot_bytes, lower snapshot_share, or use more data"),
        ({"hot_bytes": 4}, "hot_bytes must be at least 8, one row of the tables, got 4"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(settings: dict[str, object], message: str) -> None:
    policy = Slipstream(**(SETTINGS | settings))
    policy.attach({"item.weight": OneTable().item.table}, seed=0)
    with pytest.raises(ConfigError, match=message):
        policy.plan(Data())


def test_a_model_with_other_tables_is_refused() -> None:
    policy = Order()
    policy.attach({"a": OneTable().item.table, "b": OneTable().item.table}, seed=0)
    with pytest.raises(ConfigError, match=r"one table for each of the 1 id columns and 0 bags; the model has 2"):
        policy.plan(Data())


def test_periodic_by_hand() -> None:
    # Batches of 4 hold rows 0-3, so each row is one of four inputs; row 11 comes in every tenth batch.
    policy = Slipstream(0.75, mode="periodic", hot_bytes=4 * 4 * DIM, every=4, window=2, half_life=None)
    model = OneTable()
    policy.attach({"item.weight": model.item.table}, seed=0)
    assert policy.plan(Data()) is None and not policy.plans_order
    ids = torch.arange(4, dtype=torch.int32)[:, None]
    kept = []
    for number in range(13):
        size = 4
        keep = policy.keep_probability(
            Batch(Inputs(torch.empty(size, 0), ids), torch.zeros(size), torch.arange(size), torch.ones(size))
        )
        kept.append(None if keep is None else keep.tolist())
        if number == 5:
            with torch.no_grad():
                model.item.weight[:4, 0] -= torch.tensor(MOVES)
        if number == 9:
            with torch.no_grad():
                model.item.weight[:4, 0] -= torch.tensor(MOVES[::-1])
    # 0-3: counting. 4, 5: window. 6, 7: row 0 is stale. 8, 9: window, all open. 10, 11: row 3 is stale. 12: window.
    first, last = [0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]
    assert kept == [None] * 6 + [first] * 2 + [None] * 2 + [last] * 2 + [None]
    report = policy.report()
    assert report["decisions"] == 2 and report["dropped"] == 4

    again = Slipstream(0.75, mode="periodic", hot_bytes=4 * 4 * DIM, every=4, window=2, half_life=None)
    again.attach({"item.weight": model.item.table}, seed=0)
    again.load_state_dict(policy.state_dict())
    assert again.report() == report


def test_the_last_decision_stays_where_no_other_is_to_come() -> None:
    settings = {"mode": "periodic", "hot_bytes": 4 * 4 * DIM, "every": 4, "window": 2, "half_life": None}
    policy, model = Slipstream(0.75, decisions=1, **settings), OneTable()
    policy.attach({"item.weight": model.item.table}, seed=0)
    ids = torch.arange(4, dtype=torch.int32)[:, None]
    kept = []
    for number in range(13):
        inputs = Inputs(torch.empty(4, 0), ids)
        keep = policy.keep_probability(Batch(inputs, torch.zeros(4), torch.arange(4), torch.ones(4)))
        kept.append(None if keep is None else keep.tolist())
        if number == 5:
            with torch.no_grad():
                model.item.weight[:4, 0] -= torch.tensor(MOVES)
    assert kept == [None] * 6 + [[0.0, 1.0, 1.0, 1.0]] * 7
    assert policy.report()["decisions"] == 1


@pytest.mark.parametrize("half_life", [None, 10.0])
def test_periodic_drops_no_input_with_a_cold_row(half_life: float | None) -> None:
    policy = Slipstream(
        0.5, band=0.3, mode="periodic", alpha=1, hot_bytes=4 * DIM, every=2, window=1, half_life=half_life
    )
    Skipper(TwoTables(12, DIM), policy, batch_size=3)
    ids = torch.tensor([[0, 0], [0, 1], [0, 2]])
    for _ in range(8):
        keep = policy.keep_probability(
            Batch(Inputs(torch.empty(3, 0), ids), torch.zeros(3), torch.arange(3), torch.ones(3))
        )
        assert keep is None or keep.min() == 1


def test_order_alone() -> None:
    policy = Order(hot_bytes=4 * 4 * DIM, sample_share=1.0)
    policy.attach({"item.weight": OneTable().item.table}, seed=0)
    order = policy.plan(Data())
    assert order.tolist() == COLD + HOT and not policy.skips_inputs
    policy = Order("interleaved", hot_bytes=4 * 4 * DIM, sample_share=1.0, runs=2)
    policy.attach({"item.weight": OneTable().item.table}, seed=0)
    assert policy.plan(Data()).tolist() == COLD[:4] + HOT[:16] + COLD[4:] + HOT[16:]
    assert policy.report()["share_of_inputs_hot"] == 0.8


def test_interleaved_runs_are_whole_batches_and_lose_nothing() -> None:
    cold, hot = torch.arange(7), torch.arange(7, 30)
    order = interleave(cold, hot, 3, 4)
    assert order.sort().values.tolist() == list(range(30))
    assert order[:4].tolist() == [7, 8, 9, 10]  # a third of 7 is less than a batch, so the first cold run is empty
