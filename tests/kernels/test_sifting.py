"""The row update on the CPU first leaves out the lookups that update nothing, and asks for the memory of the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.kernels.test_threads import skewed
from tests.properties.cases import copies, eighths, written

from slipstream.kernels import cpu, hashing, reference
from slipstream.kernels.cpu_lookups import GATE_AHEAD, GRAD_AHEAD, GRAD_AHEAD_BYTES
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableState, UpdateSettings

ROWS = 300
SETTINGS = UpdateSettings(Rule.ADAM, 3, 0.1, 0.05, 0.9, 0.99)


def table_of(dim: int, gate: torch.Tensor | None = None) -> TableState:
    generator = torch.Generator().manual_seed(dim)
    weight, first, second = torch.rand(3, ROWS, dim, generator=generator).unbind()
    return TableState(weight.clone(), first.clone(), second.clone(), gate, seed=9)


def passes(batch: int, dim: int) -> list[RowGradients]:
    """One lookup a sample, then bags of 0 to 4 lookups with factors: two passes over one table."""
    generator = torch.Generator().manual_seed(batch)
    lengths = torch.arange(batch) % 5
    ids = skewed(ROWS, int(lengths.sum()), batch)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    bags = Lookups(ids, offsets, 1, eighths((len(ids),), generator), padding=(2,))
    one_hot = Lookups(skewed(ROWS, batch, batch + 1).unsqueeze(1), None, 1, padding=(2,))
    return [RowGradients(found, eighths((batch, 1, dim), generator), (0,)) for found in (one_hot, bags)]


def mixed_gates() -> torch.Tensor:
    return (torch.arange(ROWS) * 37 % 256).to(torch.uint8)


@pytest.mark.parametrize("by_sample", [False, True])
@pytest.mark.parametrize("dim", [3, 16, 64])
def test_batches_about_as_long_as_prefetching_runs_ahead_equal_the_reference(dim: int, by_sample: bool) -> None:
    ahead = max(GRAD_AHEAD, GRAD_AHEAD_BYTES // (4 * dim))
    for batch in sorted({1, ahead - 1, ahead, ahead + 1, GATE_AHEAD, GATE_AHEAD + 1, 5 * ahead + 3}):
        for gate in (None, mixed_gates()):
            table = replace(table_of(dim, gate), by_sample=by_sample)
            ours, truth = copies([table]), copies([table])
            mine = cpu.row_update(ours, passes(batch, dim), SETTINGS)
            true = reference.row_update(truth, passes(batch, dim), SETTINGS)
            assert (mine.lookups, mine.skipped, mine.rows) == (true.lookups, true.skipped, true.rows)
            for name, value in written(ours[0]).items():
                torch.testing.assert_close(value, written(truth[0])[name], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("rule", list(Rule), ids=lambda rule: rule.name)
def test_gates_that_are_all_open_change_no_bit(rule: Rule) -> None:
    settings = replace(SETTINGS, rule=rule)
    table = table_of(16)
    if rule == Rule.ROWWISE_ADAGRAD:
        assert table.first is not None
        table.first = table.first[:, 0].contiguous()
    without, gated = copies([table]), copies([replace(table, gate=torch.full((ROWS,), 255, dtype=torch.uint8))])
    assert cpu.row_update(without, passes(200, 16), settings) == cpu.row_update(gated, passes(200, 16), settings)
    for name, value in written(without[0]).items():
        assert torch.equal(value, written(gated[0])[name]), name


@pytest.mark.parametrize("by_sample", [False, True])
def test_a_gated_update_is_to_the_bit_that_of_its_open_lookups(by_sample: bool) -> None:
    dim, batch = 16, 400
    one_hot = passes(batch, dim)[0]
    ids, gate = one_hot.lookups.ids[:, 0], mixed_gates()
    weight = torch.ones(batch)
    if by_sample:  # what is kept weighs more: 4 times, which rounds nothing, before the sum or after
        gate = torch.where(gate == 255, gate, 64).to(torch.uint8)
        weight = torch.where(gate[ids] == 255, 1.0, 4.0)
    draws = hashing.gate_draw(ids, SETTINGS.step, 9, torch.arange(batch) if by_sample else None)
    kept = (gate[ids] == 255) | (draws < gate[ids])
    gated, plain = [replace(table_of(dim, gate), by_sample=by_sample)], [table_of(dim)]
    counts = cpu.row_update(gated, [one_hot], SETTINGS)
    grad = (one_hot.grad * weight.view(-1, 1, 1))[kept].contiguous()
    cpu.row_update(plain, [RowGradients(replace(one_hot.lookups, ids=ids[kept].unsqueeze(1)), grad, (0,))], SETTINGS)
    padded = int((ids == 2).sum())
    assert counts.lookups == [batch - padded] and counts.skipped == [int((~kept & (ids != 2)).sum())]
    for name, value in written(gated[0]).items():
        assert torch.equal(value, written(plain[0])[name]), name
