"""Tables in host memory with a cache of rows: the same training, and what crosses the bus."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slipstream import Skipper, optim, policies
from slipstream.data.batch import Bag, Batch, Inputs
from slipstream.embedding import CachedEmbeddingCollection, EmbeddingCollection, TableConfig, tables
from slipstream.embedding.cached import cached_tables
from slipstream.embedding.row_bytes import SIGNAL_BYTES, TRAIL_BYTES, row_bytes
from slipstream.errors import ConfigError, IndexOutOfRange
from slipstream.training.hotline import hotline_step

CONFIGS = [TableConfig("user", 60, 4), TableConfig("item", 90, 4), TableConfig("tag", 30, 4)]
DIM, BATCH = 4, 8
ROW = 4 * DIM


def inputs(step: int, size: int = BATCH) -> tuple[Tensor, list[Bag]]:
    """Ids of which few are hot, and a bag."""
    draw = torch.Generator().manual_seed(step)
    skewed = [(rows * torch.rand(size, generator=draw) ** 3).int() for rows in (60, 90)]
    lengths = torch.randint(0, 3, (size,), generator=draw)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return torch.stack(skewed, 1), [Bag(torch.randint(0, 30, (int(lengths.sum()),), generator=draw).int(), offsets)]


def pair(slots: int = 40, state: int = 2 * DIM) -> tuple[EmbeddingCollection, CachedEmbeddingCollection]:
    torch.manual_seed(0)
    full = EmbeddingCollection(CONFIGS, multi_hot=["tag"])
    cached = CachedEmbeddingCollection(
        CONFIGS, multi_hot=["tag"], budget_bytes=slots * row_bytes(DIM, state), state_elements=state
    )
    cached.load_state_dict(full.state_dict())
    return full, cached


def loss(rows: Tensor, step: int) -> Tensor:
    target = torch.randn(rows.shape, generator=torch.Generator().manual_seed(step))
    return (rows - target).square().sum()


def train(module: Any, optimizer: torch.optim.Optimizer, steps: Sequence[int], *, ahead: bool = False) -> None:
    for step in steps:
        if ahead:
            module.look_ahead(*inputs(step + 1))
        optimizer.zero_grad()
        loss(module(*inputs(step)), step).backward()
        optimizer.step()


def equal(full: EmbeddingCollection, of_full: Any, cached: CachedEmbeddingCollection) -> None:
    mine = cached.state_dict()
    for name, value in full.state_dict().items():
        assert torch.equal(value, mine[name]), name
    state = cached.host_state()
    for name, table in full.table_of.items():
        for key, value in of_full.state[table.weight].items():
            if isinstance(value, Tensor):
                assert torch.equal(value, state[name][key]), (name, key)


GATES = [None, 0, 100]


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("on_skip", ["freeze", "catch_up"])
@pytest.mark.parametrize("kind", [optim.SGD, optim.Adagrad, optim.RowwiseAdagrad, optim.AdamW])
def test_weights_and_state_are_those_of_full_training_bit_for_bit(
    kind: Any, on_skip: Any, gate: int | None, ahead: bool
) -> None:
    full, cached = pair()
    options: dict[str, Any] = {"initial_accumulator_value": 0.5} if kind is optim.Adagrad else {}
    mine, true = (kind(m.parameters(), lr=0.05, on_skip=on_skip, **options) for m in (cached, full))
    cached.attach(mine)
    if gate is not None:
        for name, table in full.table_of.items():
            table.open_gate()[::2] = gate
            cached.table_of[name].open_gate()[::2] = gate
    train(full, true, range(20))
    train(cached, mine, range(20), ahead=ahead)
    equal(full, true, cached)
    for name, table in full.table_of.items():
        assert (table.lookups, table.skipped) == (cached.table_of[name].lookups, cached.table_of[name].skipped)
    assert cached.bytes.weights_out > 0, "no row ever had to leave"
    assert (cached.bytes.ahead > 0) == ahead


def test_several_backward_passes_before_a_step() -> None:
    full, cached = pair(slots=60)
    mine, true = (optim.Adam(m.parameters(), lr=0.05) for m in (cached, full))
    cached.attach(mine)
    for module, optimizer in ((full, true), (cached, mine)):
        for step in range(0, 20, 2):
            optimizer.zero_grad()
            for part in (step, step + 1):
                loss(module(*inputs(part)), part).backward()
            optimizer.step()
    equal(full, true, cached)


@pytest.mark.parametrize("look", ["predict", "weight", "signal"])
def test_what_is_read_between_forward_and_step_loses_nothing(look: str) -> None:
    full, cached = pair()
    mine, true = (optim.Adam(m.parameters(), lr=0.05) for m in (cached, full))
    cached.attach(mine)
    for module in (full, cached):
        for table in module.table_of.values():
            table.measure()
    for step in range(20):
        for module, optimizer in ((full, true), (cached, mine)):
            optimizer.zero_grad()
            result = loss(module(*inputs(step)), step)
            if look == "predict":
                with torch.no_grad():
                    module(*inputs(step + 1))
            elif module is cached:
                _ = cached.table_of["user"].weight if look == "weight" else cached.table_of["user"].measure()
            result.backward()
            optimizer.step()
        for name, table in full.table_of.items():
            assert torch.equal(table.measure().view(torch.int16), cached.table_of[name].measure().view(torch.int16))
    equal(full, true, cached)


@pytest.mark.parametrize("kind", [optim.RowwiseAdagrad, optim.Adam])
@pytest.mark.parametrize("what", ["state", "forget", "load"])
def test_what_replaces_rows_between_forward_and_step_loses_no_update(what: str, kind: Any) -> None:
    """``host_state()``, ``forget()`` and ``load_state_dict()`` once lost the update of the step under way."""
    full, cached = pair()
    mine, true = (kind(m.parameters(), lr=0.05) for m in (cached, full))
    cached.attach(mine)
    for name, table in full.table_of.items():
        table.open_gate()[::2] = 100
        cached.table_of[name].open_gate()[::2] = 100
    for step in range(20):
        for module, optimizer in ((full, true), (cached, mine)):
            optimizer.zero_grad()
            result = loss(module(*inputs(step)), step)
            weights = {name: value.clone() * 0.9 for name, value in module.state_dict().items()}
            if what == "load" and step % 3 == 1:
                module.load_state_dict(weights)
            if what == "forget" and module is cached:
                cached.cache.flush()
                cached.cache.forget()
            if what == "state" and step % 3 == 1:
                if module is cached:
                    states = [value for table in cached.host_state().values() for value in table.values()]
                else:
                    states = [value for s in true.state.values() for value in s.values() if isinstance(value, Tensor)]
                for state in states:
                    state.mul_(0.5)
            result.backward()
            if step % 2:  # a second backward pass of the same step
                loss(module(*inputs(step + 50)), step).backward()
            if what == "state" and module is cached and step % 4 == 2:
                cached.host_state()
                cached.state_dict()
            optimizer.step()
    equal(full, true, cached)


@pytest.mark.parametrize("kind", [optim.RowwiseAdagrad, optim.Adam])
def test_the_budget_covers_everything_that_a_row_takes(kind: Any) -> None:
    full, cached = pair(slots=50)
    mine, true = (kind(m.parameters(), lr=0.05) for m in (cached, full))
    cached.attach(mine)
    assert cached.cache.slots == 50
    train(full, true, range(8))
    train(cached, mine, range(8))
    measured = row_bytes(DIM, 2 * DIM) + SIGNAL_BYTES + (0 if kind is optim.Adam else TRAIL_BYTES)
    for module in (full, cached):
        for table in module.table_of.values():
            table.open_gate()[::3] = 0
            table.measure()
    slots = cached.cache.slots
    assert slots == 50 * row_bytes(DIM, 2 * DIM) // measured
    train(full, true, range(8, 20))
    train(cached, mine, range(8, 20))
    equal(full, true, cached)
    card = cached.card
    held = [cached.weight, card.gate, card.signal, card.trail, *mine.state[cached.weight].values()]
    taken = sum(tensor.untyped_storage().nbytes() for tensor in held if isinstance(tensor, Tensor))
    assert taken <= 50 * row_bytes(DIM, 2 * DIM)
    if kind is optim.Adam:  # the state for which room was made
        assert taken == slots * measured


def test_a_step_does_not_wait_for_rows_that_come_for_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    _, cached = pair()
    optimizer = optim.Adam(cached.parameters(), lr=0.05)
    cached.attach(optimizer)
    waits: list[int] = []
    for step in range(3):
        cached.look_ahead(*inputs(step + 1))
        loss(cached(*inputs(step)), step).backward()
        with monkeypatch.context() as patch:
            patch.setattr(cached.cache, "_settle", lambda step=step: waits.append(step))
            optimizer.step()
    assert not waits


def test_steps_that_are_left_out_leave_no_rows_behind() -> None:
    _, cached = pair(slots=60)
    cached.attach(optim.SGD(cached.parameters(), lr=0.1))
    with pytest.raises(ConfigError, match=r"beside the \d+ of batches before.*skip_step"):
        for step in range(100):
            cached(*inputs(step))
    full, cached = pair(slots=60)
    of_full, of_cached = (optim.SGD(module.parameters(), lr=0.1) for module in (full, cached))
    cached.attach(of_cached)
    for step in range(100):
        loss(cached(*inputs(step)), step).backward()
        of_cached.zero_grad()
        if step % 7 == 0:  # rows of the step that is left out are replaced before it is
            halves = {name: 0.5 * part for name, part in full.state_dict().items()}
            for module in (full, cached):
                module.load_state_dict(halves)
        cached.skip_step()
        if step % 10 == 0:
            train(full, of_full, [step])
            train(cached, of_cached, [step])
    equal(full, of_full, cached)


def test_rows_are_not_measured_while_a_step_is_under_way() -> None:
    _, cached = pair()
    optimizer = optim.Adam(cached.parameters(), lr=0.05)
    cached.attach(optimizer)
    result = loss(cached(*inputs(0)), 0)
    with pytest.raises(ConfigError, match="a step is under way"):
        cached.table_of["user"].measure()
    result.backward()
    optimizer.step()
    cached.table_of["user"].measure()
    train(cached, optimizer, range(3))


def test_a_copy_trains_as_its_original() -> None:
    """A copy's cache once brought rows to memory that its parameter did not lie in."""
    full, cached = pair()
    cached, of_full = copy.deepcopy((cached, full))
    mine, true = (optim.Adam(m.parameters(), lr=0.05) for m in (cached, of_full))
    cached.attach(mine)
    train(of_full, true, range(10))
    train(cached, mine, range(10))
    equal(of_full, true, cached)


def test_traffic_by_hand() -> None:
    _, cached = pair(slots=4)
    optimizer = optim.Adam(cached.parameters(), lr=0.05)
    cached.attach(optimizer)
    cached.table_of["user"].open_gate()[1] = 0
    empty = [Bag(torch.empty(0, dtype=torch.int32), torch.zeros(2, dtype=torch.int64))]

    def step(user: int, item: int) -> tuple[int, int, int, int]:
        before = vars_of(cached)
        optimizer.zero_grad()
        cached(torch.tensor([[user, item]]), empty).sum().backward()
        optimizer.step()
        return tuple(b - a for a, b in zip(before, vars_of(cached), strict=True))  # type: ignore[return-value]

    assert step(0, 0) == (2 * ROW, 0, 0, 0)  # two rows came; how their state begins is known on the card
    assert step(1, 0) == (ROW, 0, 0, 0)  # a frozen row came to be read; the other was there
    assert step(1, 0) == (0, 0, 0, 0)
    assert step(2, 0) == (ROW, 0, 0, 0)  # the fourth row: now the card is full
    assert step(3, 0) == (ROW, 0, ROW, 2 * ROW)  # user 0, seen once, leaves with its state
    assert step(1, 0) == (0, 0, 0, 0)
    assert step(4, 0) == (ROW, 0, ROW, 2 * ROW)  # user 2
    assert step(5, 0) == (ROW, 0, ROW, 2 * ROW)  # user 3: the frozen row was seen more often
    cached.cache._index._card_scores[cached.cache._index.slot_of[1]] = 0
    assert step(6, 0) == (ROW, 0, 0, 0)  # the frozen row leaves: it never changed
    assert step(0, 0) == (ROW, 2 * ROW, ROW, 2 * ROW)  # user 0 comes with its state
    moved = cached.bytes
    assert (moved.rows_in, moved.rows_in_shut, moved.rows_read, moved.rows_updated) == (9, 1, 20, 17)


def vars_of(cached: CachedEmbeddingCollection) -> tuple[int, int, int, int]:
    b = cached.bytes
    return b.weights_in, b.state_in, b.weights_out, b.state_out


def test_gates_halve_what_crosses_the_bus_at_least() -> None:
    totals = []
    for gated in (False, True):
        _, cached = pair(slots=45)
        optimizer = optim.Adam(cached.parameters(), lr=0.05)
        cached.attach(optimizer)
        if gated:
            for table in cached.table_of.values():
                table.open_gate()[:] = 255 // 5  # one update in five
        train(cached, optimizer, range(60))
        totals.append(cached.bytes.total)
    assert totals[1] < 0.5 * totals[0]


def test_a_card_that_holds_everything_fetches_each_row_once() -> None:
    _, cached = pair(slots=1000)
    optimizer = optim.SGD(cached.parameters(), lr=0.05)
    cached.attach(optimizer)
    train(cached, optimizer, range(40))
    assert cached.cache.slots == 180
    assert cached.bytes.weights_in == cached.bytes.misses * ROW <= 180 * ROW
    assert cached.bytes.weights_out == 0
    cached.state_dict()
    assert 0 < cached.bytes.weights_out <= 180 * ROW


def test_popular_rows_stay() -> None:
    _, cached = pair(slots=20)
    optimizer = optim.SGD(cached.parameters(), lr=0.05)
    cached.attach(optimizer)
    empty = [Bag(torch.empty(0, dtype=torch.int32), torch.zeros(2, dtype=torch.int64))]
    for step in range(50):
        ids = torch.tensor([[0 if step % 2 else 1 + step, step]])
        optimizer.zero_grad()
        cached(ids, empty).sum().backward()
        optimizer.step()
    assert bool(cached.resident(torch.tensor([[0, 49]]), empty))
    assert not bool(cached.resident(torch.tensor([[1, 49]]), empty))


def test_saved_weights_are_those_of_an_ordinary_collection_and_come_back() -> None:
    full, cached = pair()
    optimizer = optim.SGD(cached.parameters(), lr=0.05)
    cached.attach(optimizer)
    train(cached, optimizer, range(5))
    saved = {name: value.clone() for name, value in cached.state_dict().items()}
    full.load_state_dict(saved)
    torch.testing.assert_close(full(*inputs(7)), cached(*inputs(7)), rtol=0, atol=0)
    train(cached, optimizer, range(5, 9))
    cached.load_state_dict(saved)
    torch.testing.assert_close(full(*inputs(7)), cached(*inputs(7)), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match=r"Missing key.*user"):
        cached.load_state_dict({})


def test_state_is_saved_and_loaded_through_host_memory() -> None:
    (_, cached), (_, other) = pair(), pair()
    optimizer, second = (optim.Adam(m.parameters(), lr=0.05) for m in (cached, other))
    cached.attach(optimizer)
    train(cached, optimizer, range(6))
    weights = {name: value.clone() for name, value in cached.state_dict().items()}
    states = {table: {name: value.clone() for name, value in own.items()} for table, own in cached.host_state().items()}
    other.attach(second)
    train(other, second, range(50, 53))  # something else, to be replaced
    other.load_state_dict(weights)
    for table, own in other.host_state().items():
        for name, value in own.items():
            value.copy_(states[table][name])
    second.state[other.weight]["step"] = optimizer.state[cached.weight]["step"]
    for module, of_module in ((cached, optimizer), (other, second)):
        train(module, of_module, range(6, 12))
    mine = other.state_dict()
    assert all(torch.equal(value, mine[name]) for name, value in cached.state_dict().items())
    second.load_state_dict(copy.deepcopy(second.state_dict()))
    with pytest.raises(ConfigError, match="was replaced"):
        other(*inputs(0))


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one row"):
        CachedEmbeddingCollection(CONFIGS, budget_bytes=3)
    _, cached = pair(slots=5)
    with pytest.raises(ConfigError, match="attach"):
        cached(*inputs(0))
    with pytest.raises(ConfigError, match=r"slipstream\.optim"):
        cached.attach(torch.optim.SGD(cached.parameters(), lr=0.1))
    cached.attach(optim.SGD(cached.parameters(), lr=0.1))
    with pytest.raises(ConfigError, match="rows on the card; it holds 5"):
        cached(*inputs(0, size=40))
    with pytest.raises(IndexOutOfRange, match="id 60, the table has 60 rows"):
        cached(torch.tensor([[60, 0]]), [Bag(torch.tensor([0]), torch.tensor([0, 1]))])
    with pytest.raises(ConfigError, match="2 one-hot and 1 multi-hot"):
        cached(torch.tensor([[1]]))


def test_policies_see_the_tables_in_host_memory() -> None:
    _, cached = pair()
    model = nn.ModuleDict({"embeddings": cached})
    assert not tables(model) and list(cached_tables(model)) == [
        f"embeddings.tables.{name}.weight" for name in ("user", "item", "tag")
    ]
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    cached.attach(optimizer)
    skipper = Skipper(model, policies.PSSE(budget=0.6, warmup_steps=5, every=5))
    for step in range(30):
        ids, bags = inputs(step)
        batch = Batch(Inputs(torch.zeros(BATCH, 0), ids, tuple(bags)), torch.zeros(BATCH), torch.arange(BATCH),
                      torch.ones(BATCH))  # fmt: skip
        for kept in skipper.push(batch):
            optimizer.zero_grad()
            loss(cached(kept.inputs.ids, kept.inputs.bags), step).backward()
            optimizer.step()
    assert 0.05 < skipper.share_of_row_updates_skipped < 0.6


@pytest.mark.parametrize("kind", [optim.RowwiseAdagrad, optim.Adam])
def test_saturation_decides_as_for_tables_in_one_memory_and_less_crosses_the_bus(kind: Any) -> None:
    full, cached = pair()
    mine, true = (kind(m.parameters(), lr=0.05) for m in (cached, full))
    cached.attach(mine)
    whole = pair()[1]
    of_whole = kind(whole.parameters(), lr=0.05)
    whole.attach(of_whole)
    gates: list[list[Tensor]] = []
    for module, optimizer in ((full, true), (cached, mine)):
        policy = policies.Saturation(budget=0.2, min_updates=5, probe=1 / 256, every=20, warmup_steps=40)
        skipper = Skipper(nn.ModuleDict({"embeddings": module}), policy)
        for step in range(120):
            ids, bags = inputs(step)
            batch = Batch(Inputs(torch.zeros(BATCH, 0), ids, tuple(bags)), torch.zeros(BATCH), torch.arange(BATCH),
                          torch.ones(BATCH))  # fmt: skip
            for kept in skipper.push(batch):
                optimizer.zero_grad()
                loss(module(kept.inputs.ids, kept.inputs.bags), step).backward()
                optimizer.step()
        gates.append([table.gate for table in module.table_of.values()])
        assert skipper.share_of_row_updates_skipped > 0.3
    equal(full, true, cached)
    assert all(torch.equal(a, b) for a, b in zip(*gates, strict=True))
    for name, table in full.table_of.items():
        assert torch.equal(table.measure().view(torch.int16), cached.table_of[name].measure().view(torch.int16))
        trail = cached.table_of[name].trail
        assert (trail is None) == (kind is optim.Adam) and (trail is None or torch.equal(trail, table.trail))
    train(whole, of_whole, range(120))
    assert cached.bytes.weights_out < 0.8 * whole.bytes.weights_out
    if kind is optim.Adam:  # a trail is longer than these rows
        assert cached.bytes.total < 0.9 * whole.bytes.total


def test_a_measured_row_needs_an_optimizer() -> None:
    _, cached = pair()
    with pytest.raises(ConfigError, match="attach"):
        cached.table_of["user"].measure()
    cached.attach(optim.Adam(cached.parameters(), lr=0.1))
    with pytest.raises(ConfigError, match="keeps no trail"):
        cached.table_of["user"].open_trail()


def test_a_signal_crosses_the_bus_only_after_an_update_and_comes_back_as_it_was_written() -> None:
    _, cached = pair(slots=100)
    optimizer = optim.Adam(cached.parameters(), lr=0.05)
    cached.attach(optimizer)
    user = cached.table_of["user"]
    user.measure().view(torch.int16).fill_(7)  # a policy's saved state
    cached.table_of["user"].open_gate()[10:] = 0
    train(cached, optimizer, range(3))
    seen = []
    for step in (None, 3, None):
        before = cached.bytes.state_out
        if step is not None:
            train(cached, optimizer, [step])
        signal = user.measure().view(torch.int16)
        seen.append((cached.bytes.state_out - before) // 2)
    assert seen[0] > seen[1] > seen[2] == 0
    ids, bags = inputs(3)
    of_step = [torch.unique(ids[:, 0][ids[:, 0] < 10]), torch.unique(ids[:, 1]), torch.unique(bags[0].values)]
    assert seen[1] == sum(rows.numel() for rows in of_step)
    assert bool((signal[10:] == 7).all()) and bool((signal[of_step[0].long()] != 0).all())


def test_a_prediction_brings_back_the_weights_of_the_changed_rows_that_it_reads() -> None:
    full, cached = pair(slots=100)
    mine, true = (optim.Adam(m.parameters(), lr=0.05) for m in (cached, full))
    cached.attach(mine)
    train(full, true, range(3))
    train(cached, mine, range(3))
    ids, bags = inputs(2)
    for out in (sum(t.unique().numel() for t in (ids[:, 0], ids[:, 1], bags[0].values)), 0):
        before = cached.bytes.weights_out, cached.bytes.state_out
        with torch.no_grad():
            assert torch.equal(cached(ids, bags), full(ids, bags))
        assert (cached.bytes.weights_out - before[0], cached.bytes.state_out - before[1]) == (out * ROW, 0)
    train(full, true, range(3, 20))
    train(cached, mine, range(3, 20))
    assert all(torch.equal(table.weight, cached.table_of[name].weight) for name, table in full.table_of.items())
    equal(full, true, cached)


def test_hotline_steps_equal_full_batches() -> None:
    class Model(nn.Module):
        def __init__(self, embeddings: nn.Module) -> None:
            super().__init__()
            self.embeddings = embeddings
            torch.manual_seed(1)
            self.head = nn.Linear(3 * DIM, 1)

        def losses(self, batch: Batch) -> Tensor:
            logits = self.head(self.embeddings(batch.inputs.ids, batch.inputs.bags).flatten(1)).squeeze(1)
            return nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")

    full, cached = pair(slots=70)
    plain, model = Model(full), Model(cached)
    true, mine = (optim.Adam(m.parameters(), lr=0.02) for m in (plain, model))
    cached.attach(mine)
    shares = []
    for step in range(25):
        ids, bags = inputs(step, 16)
        draw = torch.Generator().manual_seed(step)
        labels, weights = (torch.rand(16, generator=draw) < 0.4).float(), torch.rand(16, generator=draw) + 0.5
        batch = Batch(Inputs(torch.zeros(16, 0), ids, tuple(bags)), labels, torch.arange(16), weights)
        true.zero_grad()
        expected = (plain.losses(batch) * weights).mean()
        expected.backward()
        true.step()
        done = hotline_step(model, cached, [mine], batch)
        shares.append(done.popular_share)
        torch.testing.assert_close(done.loss, expected.detach(), rtol=1e-4, atol=1e-6)
    assert 0.2 < sum(shares) / len(shares) < 1.0 and max(shares) > min(shares)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-4, atol=1e-5)
