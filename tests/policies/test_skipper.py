"""What the Skipper promises, over many shapes."""

from __future__ import annotations

import copy
import gc
import itertools
import warnings
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policies.support import Chosen, TwoTables, make_batch, pieces
from torch import nn

from slipstream import optim
from slipstream.data.batch import Bag, Batch
from slipstream.embedding import EmbeddingCollection, TableConfig, tables
from slipstream.errors import ConfigError
from slipstream.policies import (
    PSSE,
    Combine,
    Guard,
    Importance,
    NoSkipping,
    Order,
    Policy,
    Progress,
    Random,
    RowImportance,
    Skipper,
    Slipstream,
)
from slipstream.policies.skipper import MEMORY, _faded

MODEL = nn.Linear(1, 1)
probabilities = st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]) | st.floats(0.05, 1.0), min_size=1, max_size=7)


def joined(batches: list[Batch]) -> Batch:
    return Batch.concat(batches) if batches else make_batch(0, 0)


@given(
    probabilities=probabilities,
    total=st.integers(0, 200),
    size=st.integers(1, 40),
    out=st.integers(1, 40),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost_or_repeated_and_batches_are_full(
    probabilities: list[float], total: int, size: int, out: int, seed: int
) -> None:
    skipper = Skipper(MODEL, Chosen(probabilities), batch_size=out, seed=seed)
    batches = list(skipper(pieces(total, size, with_bag=True)))
    assert [len(batch) for batch in batches[:-1]] == [out] * (len(batches) - 1)
    kept = joined(batches)
    assert len(kept) == skipper.inputs_kept == len(kept.index.unique())
    assert torch.equal(kept.index, kept.index.sort().values)
    assert (skipper.inputs_seen, skipper.steps) == (total, len(batches))
    # All that belongs to an input travels with it.
    whole = make_batch(0, max(total, 1), with_bag=True).select(kept.index)
    assert torch.equal(kept.inputs.ids, whole.inputs.ids)
    assert torch.equal(kept.labels, whole.labels)
    if len(kept):
        assert torch.equal(kept.time, whole.time)
        assert torch.equal(kept.inputs.bags[0].values, whole.inputs.bags[0].values)
        assert torch.equal(kept.inputs.bags[0].offsets, whole.inputs.bags[0].offsets)
    certain = [p for p in probabilities if p in (0.0, 1.0)]
    if len(certain) == len(probabilities):
        assert kept.index.tolist() == [i for i in range(total) if probabilities[i % len(probabilities)] == 1.0]


@given(probabilities=probabilities, size=st.integers(1, 64), other=st.integers(1, 64), out=st.integers(1, 64))
@settings(max_examples=40, deadline=None)
def test_decisions_do_not_depend_on_batches(probabilities: list[float], size: int, other: int, out: int) -> None:
    one = Skipper(MODEL, Chosen(probabilities), batch_size=out, seed=3)
    two = Skipper(MODEL, Chosen(probabilities), batch_size=7, seed=3)
    assert torch.equal(joined(list(one(pieces(150, size)))).index, joined(list(two(pieces(150, other)))).index)


def test_pushing_equals_calling() -> None:
    called = list(Skipper(MODEL, Random(0.4), batch_size=16, seed=1)(pieces(300, 20)))
    skipper = Skipper(MODEL, Random(0.4), batch_size=16, seed=1)
    pushed = [out for piece in pieces(300, 20) for out in skipper.push(piece)]
    pushed += skipper.flush()
    assert len(called) == len(pushed)
    for a, b in zip(called, pushed, strict=True):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.weights, b.weights)


def test_mean_weight_is_about_one() -> None:
    kept = joined(list(Skipper(MODEL, Chosen([0.1, 0.5, 1.0]), batch_size=512)(pieces(60_000, 1024))))
    assert kept.weights.mean() == pytest.approx(1.0, abs=0.02)


def test_weighted_sums_are_unbiased() -> None:
    # The mean over seeds of a weighted sum over the kept inputs is the sum over all; values and probabilities go
    # together, so that unweighted sums would be far off.
    total, seeds = 2000, 200
    data = make_batch(0, total)
    values = (data.index % 4).double()
    estimates = []
    for seed in range(seeds):
        skipper = Skipper(MODEL, Chosen([0.1, 0.3, 0.6, 0.9]), batch_size=total, seed=seed)
        kept = joined(list(skipper([data])))
        common = skipper.inputs_kept / skipper.inputs_seen
        estimates.append(float((kept.weights.double() * values[kept.index]).sum() / common))
    estimate = torch.tensor(estimates)
    error = (estimate.mean() - values.sum()) / (estimate.std() / seeds**0.5)
    assert abs(error) < 4.0
    assert float(estimate.std() / values.sum()) < 0.1


def test_inputs_dropped_for_good_leave_the_weights_alone() -> None:
    kept = joined(list(Skipper(MODEL, Chosen([0.0, 1.0, 0.0]), batch_size=8)(pieces(90, 9))))
    assert torch.equal(kept.weights, torch.ones(30))


def test_weights_of_the_data_are_kept() -> None:
    batch = make_batch(0, 64)
    batch.weights = torch.full((64,), 3.0)
    kept = joined(list(Skipper(MODEL, Chosen([1.0]), batch_size=64)([batch])))
    assert torch.equal(kept.weights, batch.weights)


def test_epochs_draw_anew_and_seeds_differ() -> None:
    skipper = Skipper(MODEL, Random(0.5), batch_size=50, seed=0)
    first, second = (set(joined(list(skipper(pieces(400, 50)))).index.tolist()) for _ in range(2))
    other = set(joined(list(Skipper(MODEL, Random(0.5), batch_size=50, seed=1)(pieces(400, 50)))).index.tolist())
    for a, b in ((first, second), (first, other)):
        # Independent halves share about a quarter of all.
        assert 60 < len(a & b) < 140


@pytest.mark.parametrize("held", [False, True])
def test_an_epoch_that_is_left_early_ends(held: bool) -> None:
    skipper = Skipper(MODEL, Random(0.5), batch_size=20, seed=0)
    seen, kept = set[int](), []
    for epoch in range(8):
        batches = skipper(pieces(400, 20))
        kept += [batches] if held else []  # else Python closes it
        seen |= set(joined(list(itertools.islice(batches, 8))).index.tolist())
        assert skipper.epoch == epoch
        del batches
    assert len(seen) > 300  # of 400; it was always the same half
    for batches in kept[:-1]:
        batches.close()
    assert skipper.epoch == 7 + (not held)
    before = skipper.epoch
    assert sum(1 for _ in skipper(pieces(40, 20))) and skipper.epoch == before + (2 if held else 1)


def test_a_state_that_is_loaded_while_an_epoch_goes_on_is_where_it_was_taken() -> None:
    skipper = Skipper(MODEL, Random(0.5), batch_size=20, seed=0)
    batches = skipper(pieces(400, 20))
    next(batches)
    state = copy.deepcopy(skipper.state_dict())
    next(batches)
    skipper.load_state_dict(state)
    again = skipper(pieces(400, 20))
    next(again)
    batches.close()
    assert skipper.epoch == 0


def test_what_waits_when_an_epoch_is_left_is_trained_in_the_next() -> None:
    skipper = Skipper(MODEL, NoSkipping(), batch_size=8)
    batches = skipper(pieces(40, 5))
    first = next(batches).index.tolist()
    batches.close()
    assert (first, skipper.epoch) == (list(range(8)), 1)
    rest = [batch.index.tolist() for batch in skipper(pieces(5, 5))]
    assert rest == [[8, 9, 0, 1, 2, 3, 4]]


def test_without_skipping_batches_pass_as_they_are() -> None:
    skipper = Skipper(TwoTables(), NoSkipping())
    given_batches = pieces(50, 8)
    assert all(a is b for a, b in zip(skipper(given_batches), given_batches, strict=True))
    report = skipper.report()
    assert (report.share_of_inputs_trained, report.share_of_row_updates_skipped, report.steps) == (1.0, 0.0, 7)
    assert "policy none: trained 50 of 50 inputs (100.0%)" in str(report)


def test_full_batches_pass_untouched_and_short_ones_wait() -> None:
    skipper = Skipper(MODEL, NoSkipping(), batch_size=8)
    full, short = make_batch(0, 8), make_batch(8, 3)
    assert next(iter(skipper.push(full))) is full
    assert list(skipper.push(short)) == []
    assert [len(b) for b in skipper.push(make_batch(11, 8))] == [8]
    assert [len(b) for b in skipper.flush()] == [3]
    assert list(skipper.flush()) == []


def test_batch_size_is_that_of_the_first_batch() -> None:
    assert {len(b) for b in list(Skipper(MODEL, Random(0.5))(pieces(1000, 25)))[:-1]} == {25}


def test_loader_of_another_kind() -> None:
    skipper = Skipper(MODEL, Random(1.0), batch_size=10, to_batch=lambda start: make_batch(start, 10))
    assert [b.index[0].item() for b in skipper([0, 10, 20])] == [0, 10, 20]


def test_resuming_in_mid_epoch_continues_exactly() -> None:
    data = pieces(400, 30, with_bag=True)
    whole = Skipper(MODEL, Random(0.3), batch_size=16, seed=2)
    expected = [out for piece in data for out in whole.push(piece)] + list(whole.flush())
    first = Skipper(MODEL, Random(0.3), batch_size=16, seed=2)
    outs = [out for piece in data[:6] for out in first.push(piece)]
    state = copy.deepcopy(first.state_dict())
    second = Skipper(MODEL, Random(0.3), batch_size=16, seed=2)
    second.load_state_dict(state)
    outs += [out for piece in data[6:] for out in second.push(piece)] + list(second.flush())
    assert len(outs) == len(expected)
    for a, b in zip(outs, expected, strict=True):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.weights, b.weights)
        assert torch.equal(a.inputs.bags[0].values, b.inputs.bags[0].values)
    assert second.report() == whole.report()


@pytest.mark.parametrize("budget", [0.6, 1.0])
def test_a_state_taken_inside_the_loop_holds_what_was_not_handed_out(budget: float) -> None:
    data = pieces(120, 40, with_bag=True)
    expected = [batch.index.tolist() for batch in Skipper(MODEL, Random(budget), batch_size=8)(data)]
    first, outs = Skipper(MODEL, Random(budget), batch_size=8), []
    for batch in first.push(data[0]):
        outs.append(batch.index.tolist())
        if len(outs) == 2:
            break
    second = Skipper(MODEL, Random(budget), batch_size=8)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    outs += [batch.index.tolist() for batch in second(data[1:])]
    assert outs == expected


def test_state_survives_torch_save_with_weights_only(tmp_path) -> None:
    skipper = Skipper(TwoTables(), PSSE(warmup_steps=1), batch_size=16)
    list(skipper.push(make_batch(0, 10)))
    torch.save(skipper.state_dict(), tmp_path / "state.pt")
    again = Skipper(TwoTables(), PSSE(warmup_steps=1), batch_size=16)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(next(iter(again.flush())).index, torch.arange(10))


@pytest.mark.parametrize(
    ("policy", "seed", "batch_size"), [(NoSkipping(), 0, 16), (Random(0.5), 1, 16), (Random(0.5), 0, 8)]
)
def test_state_of_another_run(policy: Policy, seed: int, batch_size: int) -> None:
    state = Skipper(MODEL, Random(0.5), batch_size=16).state_dict()
    with pytest.raises(ConfigError, match="state is of"):
        Skipper(MODEL, policy, batch_size=batch_size, seed=seed).load_state_dict(state)


@pytest.mark.parametrize("shape", [(3,), (20, 1), ()])
def test_probabilities_of_another_shape(shape: tuple[int, ...]) -> None:
    policy = Chosen([0.5])
    policy.keep_probability = lambda batch: torch.full(shape, 0.5)  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="for 20 inputs"):
        list(Skipper(MODEL, policy).push(make_batch(0, 20)))


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_out_of_range(batch_size: int) -> None:
    with pytest.raises(ConfigError, match="batch_size must be 1 or more"):
        Skipper(MODEL, NoSkipping(), batch_size=batch_size)


@pytest.mark.parametrize("policy", [PSSE(), Random(0.5, level="rows")])
def test_row_policy_without_tables(policy: Policy) -> None:
    with pytest.raises(ConfigError, match=r"slipstream\.convert"):
        Skipper(nn.Linear(2, 2), policy)


class Recorder(Policy):
    """Writes down what it is told."""

    name = "recorder"
    skips_rows = True

    def __init__(self) -> None:
        self.progress: list[Progress] = []
        self.seen = 0

    def update_gates(self, progress: Progress) -> None:
        self.progress.append(progress)

    def observe_lookups(self, table: object, ids: torch.Tensor) -> None:
        self.seen += ids.numel()


def test_progress_and_lookups_reach_the_policy_until_detached() -> None:
    model, policy = TwoTables(), Recorder()
    skipper = Skipper(model, policy, total_samples=20)
    for batch in skipper(pieces(20, 8)):
        model(batch.inputs).sum().backward()
    assert policy.progress == [(0, 0, 70, 0.4, 0), (1, 8, 150, 0.8, 0), (2, 16, 190, 1.0, 0)]
    assert policy.seen == 2 * 20
    with torch.no_grad():
        model(make_batch(0, 8).inputs)
    skipper.detach()
    skipper.detach()
    model(make_batch(0, 8).inputs).sum().backward()
    assert policy.seen == 2 * 20


def test_a_skipper_in_the_place_of_another_alone_is_heard() -> None:
    model = TwoTables()
    for _ in range(3):
        policy = Recorder()
        skipper = Skipper(model, policy)
    model(make_batch(0, 8).inputs).sum().backward()
    assert policy.seen == 2 * 8
    del skipper
    assert not any(table.listeners for table in tables(model).values())


def test_the_mean_weight_finds_back_to_one_after_a_change_of_the_budget() -> None:
    policy = Random(0.95)
    skipper = Skipper(TwoTables(), policy, batch_size=10_000)
    means = [float(batch.weights.mean()) for batch in skipper(pieces(600_000, 20_000))]
    policy.set_budget(0.25)
    assert means[-1] == pytest.approx(1.0, abs=0.01)
    means = [float(batch.weights.mean()) for batch in skipper(pieces(600_000, 20_000))]
    assert means[-1] == pytest.approx(1.0, abs=0.02)


def test_the_mean_weight_finds_back_however_small_the_batches_are() -> None:
    kept, decided = MEMORY, 3 * MEMORY  # a third of before; a half from now on
    for _ in range(12 * MEMORY):
        kept, decided = _faded(kept + 1, decided + 2)
    assert decided / kept == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize("lately", [[], [1], None, "ab", [1, 2, 3], [-1, 2], [5, 1], [1.5, 2]])
def test_a_state_whose_latest_counts_are_none_is_refused(lately: object) -> None:
    skipper = Skipper(TwoTables(), Random(0.5), batch_size=100)
    state = skipper.state_dict() | {"lately": lately}
    with pytest.raises(ConfigError, match="lately"):
        skipper.load_state_dict(state)


def test_a_state_of_before_counts_all_that_was_kept() -> None:
    batches = pieces(4000, 100)
    skipper = Skipper(TwoTables(), Random(0.5), batch_size=100)
    before = [batch for part in batches[:20] for batch in skipper.push(part)]
    assert before
    state = copy.deepcopy(skipper.state_dict())
    old = {name: value for name, value in state.items() if name != "lately"} | {"dropped": 0}
    after: list[list[Batch]] = []
    for saved in (state, old):
        other = Skipper(TwoTables(), Random(0.5), batch_size=100)
        other.load_state_dict(saved)
        after.append([batch for part in batches[20:] for batch in other.push(part)])
    for one, two in zip(*after, strict=True):
        assert torch.equal(one.weights, two.weights)


def test_a_policy_serves_one_skipper_at_a_time() -> None:
    policy = NoSkipping()
    first = Skipper(TwoTables(), policy)
    with pytest.raises(ConfigError, match=r"'none' serves another Skipper.*detach"):
        Skipper(TwoTables(), policy)
    first.detach()
    second = Skipper(TwoTables(), policy)
    first.detach()  # serves nobody any more: the second's place is not its to give up
    with pytest.raises(ConfigError, match="serves another Skipper"):
        Skipper(TwoTables(), policy)
    del second
    part = Random(0.5)
    both = Skipper(TwoTables(), Combine(part, PSSE()))
    with pytest.raises(ConfigError, match="'random' serves another Skipper"):
        Skipper(TwoTables(), Combine(part, PSSE()))
    both.detach()
    Skipper(TwoTables(), Combine(part, PSSE()))
    Skipper(TwoTables(), policy)


def test_gates_of_before_are_said() -> None:
    model = TwoTables()
    Skipper(model, Random(0.5, level="rows")).detach()
    for policy in (NoSkipping(), RowImportance(0.5), PSSE()):
        said = rf"'user.weight' and 1 more: .*unless policy '{policy.name}' sets them; table.set_gate\(None\) opens all"
        with pytest.warns(UserWarning, match=said):
            Skipper(model, policy).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for budget in (0.7, 0.7):
            Skipper(model, Random(budget, level="rows")).detach()  # sets its own, the same ones once more
        for table in tables(model).values():
            table.set_gate(None)
        Skipper(model, NoSkipping())


@pytest.mark.parametrize("policy", ["random", Random])
def test_what_is_no_policy(policy: object) -> None:
    with pytest.raises(ConfigError, match=r"slipstream\.policies\.Random"):
        Skipper(TwoTables(), policy)


@pytest.mark.parametrize("policy", [Random(0.5), NoSkipping()], ids=["random", "none"])
def test_what_is_no_batch(policy: Policy) -> None:
    for to_batch, who in ((None, "the loader yields dict"), (lambda batch: batch, "to_batch makes dict")):
        skipper = Skipper(TwoTables(), copy.deepcopy(policy), to_batch=to_batch)
        with pytest.raises(ConfigError, match=f"{who}.*Columns"):
            next(skipper([{"user": torch.ones(3)}]))


def test_share_of_row_updates_skipped_counts_from_the_skippers_start() -> None:
    model = TwoTables()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def train(batches: object) -> None:
        for batch in batches:
            optimizer.zero_grad()
            model(batch.inputs).sum().backward()
            optimizer.step()

    train(pieces(100, 10))
    skipper = Skipper(model, Random(0.5, level="rows"))
    assert skipper.share_of_row_updates_skipped == 0.0
    train(skipper(pieces(4000, 100)))
    assert skipper.share_of_row_updates_skipped == pytest.approx(0.5, abs=0.05)
    assert skipper.share_of_inputs_trained == 1.0
    state = skipper.state_dict()
    other = Skipper(TwoTables(), Random(0.5, level="rows"))
    other.load_state_dict(state)
    assert other.share_of_row_updates_skipped == skipper.share_of_row_updates_skipped


@pytest.mark.parametrize("policy", [PSSE, Importance, Order, Slipstream, Guard], ids=lambda policy: policy.__name__)
def test_a_model_that_holds_its_skipper_is_freed(policy: type[Policy]) -> None:
    model = TwoTables()
    model.skipper = Skipper(model, policy(), batch_size=8)  # type: ignore[assignment]
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},  # would fill empty batches for ever
        {"batch_size": "16"},
        {"inputs_seen": -1},
        {"inputs_seen": 10**30},
        {"earlier": [float("inf"), 0]},
        {"first_epoch": -5},
    ],
)
def test_a_state_of_impossible_numbers(change: dict[str, object]) -> None:
    state = Skipper(MODEL, Random(0.5), batch_size=16).state_dict()
    with pytest.raises(ConfigError, match="the state's"):
        Skipper(MODEL, Random(0.5)).load_state_dict({**state, **change})


def test_waiting_inputs_of_other_types_are_refused_before_compiled_code_reads_them() -> None:
    first = Skipper(MODEL, Random(0.5), batch_size=16)
    list(first.push(make_batch(0, 10, with_bag=True)))
    state = first.state_dict()
    bag = state["waiting"]["bags"][0]
    size = len(state["waiting"]["index"])
    for change in (
        {"bags": [{**bag, "values": bag["values"][:, None]}]},
        {"bags": [{**bag, "offsets": bag["offsets"].float()}]},
        {"ids": state["waiting"]["ids"].bool()},
        {"labels": torch.zeros(size, dtype=torch.float64)},
        {"weights": torch.zeros(1)},
        {"dense": torch.zeros(size)},
        {"time": torch.zeros(size)},
        {"logit_offset": torch.zeros(size, 2)},
        {"carried": {"a": torch.zeros(size + 1)}},
    ):
        with pytest.raises(ConfigError, match="the state's"):
            Skipper(MODEL, Random(0.5), batch_size=16).load_state_dict(
                {**state, "waiting": {**state["waiting"], **change}}
            )
    Skipper(MODEL, Random(0.5), batch_size=16).load_state_dict(state)


def test_an_empty_first_batch_decides_nothing() -> None:
    skipper = Skipper(MODEL, Random(0.5), seed=1)
    batches = list(skipper([make_batch(0, 0), make_batch(0, 8), make_batch(8, 8)]))
    assert skipper.batch_size == 8
    assert sum(len(batch) for batch in batches) == skipper.inputs_kept > 0


@pytest.mark.parametrize("policy", [PSSE(0.5, warmup_steps=1, every=1), Random(0.5, level="rows")])
def test_listeners_hear_of_empty_batches_of_bags(policy: Policy) -> None:
    bags = EmbeddingCollection([TableConfig("a", 9, 4), TableConfig("b", 7, 4)], multi_hot=["a", "b"])
    skipper = Skipper(bags, policy)
    nothing = Bag(torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    bags(torch.zeros(0, 0, dtype=torch.int64), (nothing, nothing)).sum().backward()
    assert all(table.lookups == 0 for table in skipper.tables.values())
