"""What updates measure of rows: codes, counts, and that back ends and threads agree."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from tests.backends import BACK_ENDS, for_each_back_end, load
from tests.properties.cases import Case, cases, copies

from slipstream.errors import UnsupportedOption
from slipstream.kernels import cpu, reference
from slipstream.kernels.signal import SAMPLE, encode, is_measured, steps_of_counts
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableState, UpdateSettings
from slipstream.staleness.moments import codes, decode, moments_floor, trail_floor, updates

RULES = (Rule.SGD, Rule.ADAGRAD, Rule.ROWWISE_ADAGRAD, Rule.ADAM)
MEASURED = [step for step in range(1, 4_000) if is_measured(step)]


def measured_table(rule: Rule, rows: int, dim: int) -> TableState:
    first = None if rule == Rule.SGD else torch.zeros(rows) if rule == Rule.ROWWISE_ADAGRAD else torch.zeros(rows, dim)
    second = torch.zeros(rows, dim) if rule == Rule.ADAM else None
    signal = torch.zeros(rows, dtype=torch.uint16)
    trail = None if rule == Rule.ADAM else torch.zeros(rows, 5)
    return TableState(torch.zeros(rows, dim), first, second, signal=signal, trail=trail)


def settings_of(rule: Rule, step: int) -> UpdateSettings:
    return UpdateSettings(rule, step, 0.1, 1e-8, 0.9 if rule == Rule.ADAM else 0.0, 0.999)


def update(
    table: TableState, rows: list[int], grad: torch.Tensor, rule: Rule, step: int, back_end: object = cpu
) -> None:
    block = RowGradients(Lookups(torch.tensor(rows).unsqueeze(1), None, 1), grad.unsqueeze(1), (0,))
    back_end.row_update([table], [block], settings_of(rule, step))  # type: ignore[attr-defined]


def with_signals(case: Case) -> list[TableState]:
    tables = copies(case.tables)
    for table in tables:
        rows = len(table.weight)
        table.signal = torch.arange(rows, dtype=torch.int32).mul(37).remainder(256).to(torch.uint16)
        table.trail = None if table.second is not None else torch.zeros(rows, 5)
    return tables


@pytest.mark.parametrize("dim", [3, 16, 20])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@for_each_back_end(examples=40, interpreted=4)
def test_back_ends_agree(kernels: Any, data: st.DataObject, rule: Rule, dim: int) -> None:
    case = data.draw(cases(rule, dim))
    case.settings = replace(case.settings, step=data.draw(st.sampled_from((*MEASURED[:3], 7))))
    fast, plain = with_signals(case), with_signals(case)
    before = [table.signal.clone() for table in fast]
    kernels.row_update(fast, case.gradients, case.settings)
    reference.row_update(plain, case.gradients, case.settings)
    for a, b, old in zip(fast, plain, before, strict=True):
        assert torch.equal(updates(a.signal), updates(b.signal))
        assert int((codes(a.signal) - codes(b.signal)).abs().max()) <= 1
        if a.trail is not None:
            torch.testing.assert_close(a.trail, b.trail, rtol=1e-4, atol=1e-5)
        if not is_measured(case.settings.step):
            assert torch.equal(a.signal.view(torch.int16), old.view(torch.int16))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_signal_changes_no_weight_and_no_state(rule: Rule) -> None:
    one = measured_table(rule, 30, 20)
    two = replace(one, **{n: getattr(one, n) if getattr(one, n) is None else getattr(one, n).clone()
                          for n in ("weight", "first", "second")}, signal=None, trail=None)  # fmt: skip
    for step in range(1, 20):
        g = torch.Generator().manual_seed(step)
        rows, grad = torch.randint(0, 30, (25,), generator=g).tolist(), torch.randn(25, 20, generator=g)
        update(one, rows, grad, rule, step)
        update(two, rows, grad, rule, step)
    assert torch.equal(one.weight, two.weight)
    for a, b in ((one.first, two.first), (one.second, two.second)):
        assert a is None or torch.equal(a, b)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_signals_are_the_same_bits_for_any_number_of_threads(rule: Rule, set_threads: Callable[[int], None]) -> None:
    g = torch.Generator().manual_seed(5)
    results = []
    ids = (700 * torch.rand(40, 5_000, generator=g) ** 3).long()
    grad = torch.randn(5_000, 16, generator=g)
    for threads in (1, 2, 3):
        set_threads(threads)
        table = measured_table(rule, 700, 16)
        table.gate = (torch.arange(700) * 37 % 256).to(torch.uint8)
        for step in range(1, 40):
            update(table, ids[step].tolist(), grad, rule, step)
        results.append(table)
    assert int(updates(results[0].signal).max()) > 0
    for other in results[1:]:
        assert torch.equal(results[0].signal.view(torch.int16), other.signal.view(torch.int16))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("back_end", [cpu, reference])
def test_agreeing_updates_measure_one_and_noise_the_floor(rule: Rule, back_end: object) -> None:
    table = measured_table(rule, 40, 32)
    floor = moments_floor(0.9) if rule == Rule.ADAM else trail_floor()
    g = torch.Generator().manual_seed(1)
    for step in range(1, 400):  # rows below 20 are pushed one way, the others both ways
        grad = torch.ones(40, 32)
        grad[20:] = torch.randn(20, 32, generator=g)
        update(table, list(range(40)), grad, rule, step, back_end)
    value = decode(codes(table.signal))
    assert (value[:20] > 0.9).all()
    assert 0.7 * floor < float(value[20:].mean()) < 1.3 * floor
    steps = updates(table.signal)
    assert (steps == steps[0]).all() and abs(int(steps[0]) - 399) <= 2 * SAMPLE


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_duplicates_of_a_step_count_once_and_gated_rows_not_at_all(kernels: str) -> None:
    table = measured_table(Rule.ADAM, 4, 3)
    table.gate = torch.tensor([255, 0, 255, 255], dtype=torch.uint8)
    update(table, [0, 0, 1, 3, 0], torch.ones(5, 3), Rule.ADAM, MEASURED[0], load(kernels))
    assert (table.signal.to(torch.int32) & 255).tolist() == [1, 0, 0, 1]
    update(
        table, [0, 3], torch.ones(2, 3), Rule.ADAM, next(s for s in range(1, 99) if s not in MEASURED), load(kernels)
    )
    assert (table.signal.to(torch.int32) & 255).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_row_that_does_not_move_is_saturated(rule: Rule, kernels: str) -> None:
    table = measured_table(rule, 1, 4)
    update(table, [0], torch.zeros(1, 4), rule, MEASURED[0], load(kernels))
    assert codes(table.signal).tolist() == [0] and (table.signal.to(torch.int32) & 255).tolist() == [1]


def test_counts_go_on_past_the_byte() -> None:
    rows = 2_000
    table = measured_table(Rule.ADAM, rows, 4)
    for step in MEASURED:
        update(table, list(range(rows)), torch.ones(1, 4).expand(rows, 4), Rule.ADAM, step)
    counted = updates(table.signal).double()
    assert float(counted.mean()) == pytest.approx(SAMPLE * len(MEASURED), rel=0.03)
    assert len(steps_of_counts()) == 256 and steps_of_counts()[-1] == SAMPLE * 8_032


def test_one_step_in_five_is_measured_whatever_the_period_of_the_data() -> None:
    assert abs(len(MEASURED) - 4_000 / SAMPLE) < 5
    assert all(b - a < 3 * SAMPLE for a, b in itertools.pairwise(MEASURED))
    for period in (2, 3, 4, 5, 8, 10, 100):
        assert {step % period for step in MEASURED} == set(range(period))


def test_codes_by_hand() -> None:
    values = torch.tensor([0.0, 2**-9, 2**-8, 0.25, 0.5, 0.75, 0.999, 1.0, 30.0, float("nan")])
    assert encode(values).tolist() == [0, 0, 0, 192, 224, 240, 255, 255, 255, 255]
    every = torch.arange(256)
    assert torch.equal(encode(decode(every)).long(), every)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_a_signal_without_moments_needs_a_trail(kernels: str) -> None:
    table = replace(measured_table(Rule.SGD, 2, 4), trail=None)
    with pytest.raises(UnsupportedOption, match="trail"):
        update(table, [0], torch.ones(1, 4), Rule.SGD, 1, load(kernels))
