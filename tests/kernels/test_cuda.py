"""What only the GPU back end has, by Triton's interpreter: late errors, counts left on the device, narrow tables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.backends import load, needs_triton
from tests.interpreter import DEVICE
from torch import Tensor, nn

from slipstream import optim
from slipstream.embedding import Embedding
from slipstream.errors import ConfigError, IndexOutOfRange, UnsupportedOption
from slipstream.kernels import reference, registry, rounding
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableSet, TableState, UpdateSettings

pytestmark = needs_triton


@pytest.fixture
def kernels() -> Any:
    return load("cuda")


@pytest.fixture
def late() -> Iterator[None]:
    """Errors are raised at a later step, as in a training."""
    registry.set_check("lazy")
    yield
    registry.set_check("always")


def one_hot(*rows: int, device: str = DEVICE) -> Lookups:
    return Lookups(torch.tensor(rows, device=device).unsqueeze(1), None, 1)


def sgd(table: TableState | TableSet, found: Lookups, step: int = 1) -> Any:
    grad = torch.ones(found.batch_size, 1, 3, device=DEVICE)
    tables = table if isinstance(table, TableSet) else [table]
    with registry.using("cuda"):
        return registry.row_update(tables, [RowGradients(found, grad, (0,))], UpdateSettings(Rule.SGD, step, 1.0))


def test_importing_the_library_leaves_triton_alone() -> None:
    code = (
        "import sys, slipstream.optim, slipstream.policies, slipstream.kernels.registry; print('triton' in sys.modules)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "False"


def test_errors_come_at_a_later_step_and_the_id_is_left_out(late: None) -> None:
    table = TableState(torch.zeros(5, 3, device=DEVICE))
    sgd(table, one_hot(1, 7, 4))  # nothing is raised, and nobody waited
    assert table.weight[:, 0].tolist() == [0.0, -1.0, 0.0, 0.0, -1.0]
    with pytest.raises(IndexOutOfRange, match="update, table 0: lookup 1 has id 7, the table has 5 rows"):
        for _ in range(50):
            sgd(table, one_hot(0))
            if DEVICE == "cuda":
                torch.cuda.synchronize()
    sgd(table, one_hot(0))  # it is told once


def test_errors_can_be_asked_for(late: None) -> None:
    with registry.using("cuda"):
        rows = registry.pool([torch.ones(5, 3, device=DEVICE)], one_hot(4, -1))
    assert rows[:, 0, 0].tolist() == [1.0, 0.0]
    with pytest.raises(IndexOutOfRange, match="lookup, feature 0: lookup 1 has id -1"):
        registry.check_errors()
    registry.check_errors()


def test_settings_of_checks_and_back_ends_are_checked() -> None:
    with pytest.raises(ConfigError, match="lazy"):
        registry.set_check("sometimes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="reference"), registry.using("tpu"):
        pass


def test_tensors_apart_and_states_of_another_kind_are_refused(kernels: Any) -> None:
    table = TableState(torch.zeros(5, 3), gate=torch.zeros(4, dtype=torch.uint8))
    block = RowGradients(Lookups(torch.tensor([[1]]), None, 1), torch.ones(1, 1, 3), (0,))
    with pytest.raises(UnsupportedOption, match="gate of a table"):
        kernels.row_update([table], [block], UpdateSettings(Rule.SGD, 1, 0.1))
    with pytest.raises(UnsupportedOption, match="one has rows of 4"):
        kernels.pool([torch.zeros(5, 3), torch.zeros(5, 4)], Lookups(torch.tensor([[1, 1]]), None, 2))
    with pytest.raises(UnsupportedOption, match="sample weights"):
        kernels.pool([torch.zeros(5, 3)], Lookups(torch.tensor([1]), torch.tensor([0, 1]), 1, torch.ones(2)))


def test_counts_stay_on_the_device_until_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = TableSet([TableState(torch.zeros(5, 3, device=DEVICE))])
    tables[0].gate = torch.tensor([255, 0, 255, 255, 255], dtype=torch.uint8, device=DEVICE)
    counts = [sgd(tables, one_hot(0, 1, 1, 2), step) for step in (1, 2)]
    assert tables.totals is not None and tables.totals.tolist() == [[8, 4]]
    assert (counts[1].lookups, counts[1].skipped, counts[1].rows) == ([4], [2], [2])
    assert counts[0].totals is tables.totals


def test_tables_add_up_what_their_optimizers_counted_on_the_device() -> None:
    table = Embedding(8, 3, device=DEVICE)
    optimizer = optim.SGD(table.parameters(), lr=0.1)
    read = []
    with registry.using("cuda"):
        for step in range(4):
            if step == 2:
                table.table.set_gate(torch.zeros(8, dtype=torch.uint8))  # the tables are prepared anew
            optimizer.zero_grad()
            table(torch.arange(5, device=DEVICE)).sum().backward()
            optimizer.step()
            read.append((table.table.lookups, table.table.skipped))
    assert read == [(5, 0), (10, 0), (15, 5), (20, 10)]
    table.table.lookups = table.table.skipped = 0
    assert (table.table.lookups, table.table.skipped) == (0, 0)


def test_a_captured_step_reads_its_settings_anew(kernels: Any) -> None:
    """Launches of a graph are the same calls on the same memory: only what was written there may differ."""
    if DEVICE == "cuda":
        pytest.skip("tests/gpu captures a graph")
    from slipstream.kernels import cuda, cuda_tables

    weight = torch.zeros(6, 3)
    mine, truth = TableSet([TableState(weight.clone())]), [TableState(weight.clone())]
    gate = torch.full((6,), 128, dtype=torch.uint8)
    mine[0].gate = truth[0].gate = gate
    block = RowGradients(one_hot(0, 1, 2, 3, 4, 5, device="cpu"), torch.ones(6, 1, 3), (0,))
    frozen = UpdateSettings(Rule.SGD, 1, 1.0)
    for step in (1, 2, 3, 4):
        settings = UpdateSettings(Rule.SGD, step, 1.0 / step)
        cuda.write_settings(mine, settings)
        with pytest.MonkeyPatch.context() as patch:  # a replay sends no settings
            patch.setattr(cuda_tables, "write_settings", lambda *_: None)
            cuda.row_update(mine, [block], frozen)
        reference.row_update(truth, [block], settings)
        assert torch.equal(mine[0].weight, truth[0].weight)


def test_an_optimizer_counts_and_sends_the_steps_of_a_replayed_graph() -> None:
    """What is captured happens at once here, so the step of the capture itself is taken back."""
    if DEVICE == "cuda":
        pytest.skip("tests/gpu captures a graph")
    from slipstream.kernels import cuda, cuda_tables
    from slipstream.optim.plan import Part

    def made() -> tuple[Embedding, optim.Adam]:
        torch.manual_seed(0)
        table = Embedding(6, 3)
        return table, optim.Adam(table.parameters(), lr=0.1)

    (mine, replayed), (eager, stepped) = made(), made()
    with pytest.raises(ConfigError, match="captured"):
        replayed.before_replay()
    calls: list[Any] = []
    with registry.using("cuda"):
        for table, optimizer in ((mine, replayed), (eager, stepped)):
            table(torch.tensor([1, 2, 2])).sum().backward()
            optimizer.step()
        weight = mine.weight.detach().clone()
        state = {name: value.clone() for name, value in replayed.state[mine.weight].items() if name != "step"}
        launch = cuda.row_update
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Part, "is_captured", lambda _: True)
            patch.setattr(cuda, "row_update", lambda *call: calls.append(call) or launch(*call))
            replayed.step()
        mine.weight.data.copy_(weight)
        for name, value in state.items():
            replayed.state[mine.weight][name].copy_(value)
        assert replayed.state[mine.weight]["step"] == 1
        for step in range(3):
            for optimizer in (replayed, stepped):
                optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            replayed.before_replay()
            with pytest.MonkeyPatch.context() as patch:  # a replay sends no settings
                patch.setattr(cuda_tables, "write_settings", lambda *_: None)
                launch(*calls[0])
            stepped.step()
            assert torch.equal(mine.weight, eager.weight)
    assert replayed.state[mine.weight]["step"] == stepped.state[eager.weight]["step"] == 4
    replayed.load_state_dict(stepped.state_dict())  # into tensors that no graph knows
    with pytest.raises(ConfigError, match="captured"):
        replayed.before_replay()


def test_sums_of_hot_rows_do_not_depend_on_other_rows(kernels: Any) -> None:
    """Rows of more lookups than a program sums are added up in chunks that begin at the row's own first lookup."""
    draw = torch.Generator().manual_seed(0)
    hot = torch.randn(700, 1, 5, generator=draw)
    results = []
    for others in (0, 1, 77, 300):
        ids = torch.cat([torch.zeros(others), torch.full((700,), 3.0), torch.full((others,), 4.0)]).long().unsqueeze(1)
        grad = torch.cat([torch.randn(others, 1, 5), hot, torch.randn(others, 1, 5)])
        table = TableState(torch.zeros(6, 5))
        kernels.row_update([table], [RowGradients(Lookups(ids, None, 1), grad, (0,))], UpdateSettings(Rule.SGD, 1, 1.0))
        results.append(table.weight[3])
    assert all(torch.equal(results[0], other) for other in results[1:])
    torch.testing.assert_close(results[0], -hot.double().sum((0, 1)).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [(128, 129, 127), (1, 256, 300, 2), (129,), (640, 128, 130, 1, 129)])
def test_segments_of_every_length_are_summed(lengths: tuple[int, ...], kernels: Any) -> None:
    draw = torch.Generator().manual_seed(1)
    ids = torch.cat([torch.full((n,), row) for row, n in enumerate(lengths)])
    ids = ids[torch.randperm(len(ids), generator=draw)].unsqueeze(1)
    grad = torch.randint(-16, 17, (len(ids), 1, 3), generator=draw) / 8  # sums are exact in any order
    mine, truth = TableState(torch.zeros(len(lengths), 3)), TableState(torch.zeros(len(lengths), 3))
    for back_end, table in ((kernels, mine), (reference, truth)):
        back_end.row_update(
            [table], [RowGradients(Lookups(ids, None, 1), grad, (0,))], UpdateSettings(Rule.SGD, 1, 1.0)
        )
    assert torch.equal(mine.weight, truth.weight)


NARROW = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", NARROW)
def test_rounding_by_chance_keeps_the_mean_and_what_is_exact(dtype: torch.dtype) -> None:
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, 0.15625, 2.0**-24, float("inf"), float("-inf"), float("nan")])
    rows = torch.arange(1000)
    for value in exact:
        rounded = rounding.stochastic(value.expand(1000, 1), rows, dtype, 3, 5)
        torch.testing.assert_close(rounded, value.to(dtype).expand(1000, 1), rtol=0, atol=0, equal_nan=True)
    for value in (1.0 + 2.0**-12, -3.3, 1e-5, 7e-6, 6e-8, -2e-8):
        if dtype == torch.bfloat16 and abs(value) < 1e-7:
            continue
        found = rounding.stochastic(torch.full((40_000, 1), value), torch.arange(40_000), dtype, 1, 0).double()
        low, high = float(found.min()), float(found.max())
        below = torch.tensor(value).to(dtype).double()
        assert low <= value <= high and below in (low, high)
        spread = (high - low) / 2 or 1e-12
        assert abs(float(found.mean()) - torch.tensor(value).double()) < 5 * spread / 40_000**0.5
    again = [rounding.stochastic(torch.full((9, 4), 1.003), torch.arange(9), dtype, *key) for key in ((1, 0), (1, 0))]
    assert torch.equal(*again)
    others = [
        rounding.stochastic(torch.full((99, 4), 1.003), torch.arange(99), dtype, *k) for k in ((1, 0), (2, 0), (1, 9))
    ]
    assert not torch.equal(others[0], others[1]) and not torch.equal(others[0], others[2])


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("rule", [Rule.SGD, Rule.ADAGRAD, Rule.ROWWISE_ADAGRAD, Rule.ADAM], ids=lambda rule: rule.name)
def test_narrow_tables_equal_the_reference(rule: Rule, dtype: torch.dtype, kernels: Any) -> None:
    draw = torch.Generator().manual_seed(2)

    def state() -> TableState:
        draw.manual_seed(3)
        first = torch.rand(30, generator=draw) if rule == Rule.ROWWISE_ADAGRAD else torch.rand(30, 5, generator=draw)
        second = torch.rand(30, 5, generator=draw) if rule == Rule.ADAM else None
        gate = (torch.arange(30) * 37 % 256).to(torch.uint8)
        weight = torch.randn(30, 5, generator=draw).to(dtype)
        return TableState(weight, None if rule == Rule.SGD else first, second, gate, seed=2**63 + 4)

    mine, truth = state(), state()
    agreed = 0.0
    for step in (1, 2, 3):
        found = Lookups(torch.randint(0, 30, (40, 2), generator=draw), None, 2)
        grad = torch.randint(-16, 17, (40, 2, 5), generator=draw) / 8
        settings = UpdateSettings(rule, step, 0.01, 0.05, 0.9, 0.99)
        for back_end, table in ((kernels, mine), (reference, truth)):
            back_end.row_update([table], [RowGradients(found, grad.to(dtype), (0, 0))], settings)
        agreed = float((mine.weight == truth.weight).float().mean())
    # Values that differ in float32's last bit may be rounded apart.
    assert agreed > 0.98
    unit = 2.0 ** (-7 if dtype == torch.bfloat16 else -10)
    torch.testing.assert_close(mine.weight.float(), truth.weight.float(), rtol=unit, atol=1e-3)
    assert torch.equal(
        kernels.pool([mine.weight], found1 := one_hot(3, 4, device="cpu")), reference.pool([mine.weight], found1)
    )


def test_small_steps_move_a_narrow_table_in_the_mean(kernels: Any) -> None:
    table = TableState(torch.ones(200, 8, dtype=torch.bfloat16))
    found, grad = Lookups(torch.arange(200).unsqueeze(1), None, 1), torch.ones(200, 1, 8)
    for step in range(1, 11):  # rounded to nearest, no step of 1/1000 would ever move 1.0
        kernels.row_update([table], [RowGradients(found, grad, (0,))], UpdateSettings(Rule.SGD, step, 1 / 1000))
    assert float(table.weight.float().mean()) == pytest.approx(1 - 10 / 1000, abs=1e-3)


def test_optimizer_state_of_a_narrow_table_is_float32_and_survives_reloading() -> None:
    table = Embedding(8, 3, dtype=torch.bfloat16, device=DEVICE)
    optimizer = optim.Adam(table.parameters(), lr=0.1)
    with registry.using("cuda"):
        for _ in range(2):
            optimizer.zero_grad()
            table(torch.arange(5, device=DEVICE)).float().square().sum().backward()
            optimizer.step()
    state = optimizer.state[table.weight]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32
    other = optim.Adam(table.parameters(), lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(other.state[table.weight][name], state[name])
        assert other.state[table.weight][name].dtype == torch.float32


def test_a_model_trains_alike_on_both_back_ends() -> None:
    def run(back_end: str) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(Embedding(12, 4, padding_idx=0), nn.Flatten(), nn.Linear(12, 1)).to(DEVICE)
        optimizer = optim.Adam(model.parameters(), lr=0.05, on_skip="catch_up")
        model[0].table.open_gate()[::3] = 100
        model[0].table.measure()
        with registry.using(back_end):
            for step in range(6):
                ids = torch.randint(0, 12, (16, 3), generator=torch.Generator().manual_seed(step)).to(DEVICE)
                optimizer.zero_grad()
                model(ids).square().mean().backward()
                optim.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
        return [*(p.detach() for p in model.parameters()), model[0].table.signal.view(torch.int16) & 255]

    for mine, true in zip(run("cuda"), run("reference"), strict=True):
        torch.testing.assert_close(mine, true, rtol=2e-5, atol=2e-6)


def test_no_lookups_and_no_rows(kernels: Any) -> None:
    table = TableState(torch.ones(5, 3))
    counts = kernels.row_update([table], [], UpdateSettings(Rule.SGD, 1, 0.1))
    assert (counts.lookups, counts.skipped, counts.rows, counts.squared_norm) == ([0], [0], [0], [0.0])
    shut = replace(table, gate=torch.zeros(5, dtype=torch.uint8))
    block = RowGradients(one_hot(1, 2, device="cpu"), torch.ones(2, 1, 3), (0,))
    counts = kernels.row_update([shut], [block], UpdateSettings(Rule.SGD, 1, 0.1))
    assert (counts.lookups, counts.skipped, counts.rows) == ([2], [2], [0]) and (table.weight == 1).all()
    counts = kernels.row_update([table, TableState(torch.ones(0, 3))], [block], UpdateSettings(Rule.NORM))
    assert counts.rows == [2, 0] and counts.squared_norm == [6.0, 0.0]
