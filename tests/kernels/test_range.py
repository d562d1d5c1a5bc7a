"""Ids outside a table raise, and are neither read nor written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.backends import BACK_ENDS, load
from torch import Tensor

from slipstream.errors import IndexOutOfRange, SlipstreamError
from slipstream.kernels import cpu, reference, registry
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableState, UpdateSettings
from slipstream.staleness import compiled
from slipstream.staleness.sketch import PopularitySketch

# The far ones would crash the process if they were read.
OUTSIDE = (-1, 5, 2**31 - 1, -(2**31), 2**40, -(2**40), 2**62)


def inside_of(memory: Tensor) -> Tensor:
    """Rows 5 to 9 of a larger memory, whose other rows nobody may touch."""
    return memory[5:10]


def with_bad(bad: int, offsets: bool) -> Lookups:
    wide = abs(bad) > 2**31 - 1
    ids = torch.tensor([1, 4, bad, 0], dtype=torch.int64 if wide else torch.int32)
    if offsets:
        return Lookups(ids, torch.tensor([0, 1, 1, 4]), 1)
    return Lookups(ids.unsqueeze(1), None, 1)


@pytest.mark.parametrize("kernels", [*BACK_ENDS, "reference"])
@pytest.mark.parametrize("offsets", [False, True], ids=["one-hot", "bags"])
@pytest.mark.parametrize("bad", OUTSIDE)
def test_pool_raises(bad: int, offsets: bool, kernels: str) -> None:
    weight = inside_of(torch.full((15, 3), 7.0))
    with pytest.raises(IndexOutOfRange, match=str(bad)) as caught:
        (reference if kernels == "reference" else load(kernels)).pool([weight], with_bad(bad, offsets))
    assert isinstance(caught.value, IndexError)  # what torch raises


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("offsets", [False, True], ids=["one-hot", "bags"])
@pytest.mark.parametrize("bad", OUTSIDE)
@pytest.mark.parametrize("rule", [Rule.SGD, Rule.ADAM], ids=lambda rule: rule.name)
def test_row_update_raises_and_writes_nothing_outside(rule: Rule, bad: int, offsets: bool, kernels: str) -> None:
    memory = [torch.full((15, 3), value) for value in (1.0, 2.0, 3.0)]
    weight, first, second = map(inside_of, memory)
    gate = torch.full((15,), 255, dtype=torch.uint8)
    table = TableState(weight, first if rule == Rule.ADAM else None, second if rule == Rule.ADAM else None, gate[5:10])
    found = with_bad(bad, offsets)
    block = RowGradients(found, torch.ones(found.batch_size, 1, 3), (0,))
    with pytest.raises(IndexOutOfRange):
        load(kernels).row_update([table], [block], UpdateSettings(rule, 1, 0.1, 1e-8, 0.9, 0.99))
    for value, part in zip((1.0, 2.0, 3.0), memory, strict=True):
        assert (part[:5] == value).all() and (part[10:] == value).all()


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_row_update_names_the_table(kernels: str) -> None:
    tables = [TableState(torch.zeros(100, 3)), TableState(torch.zeros(5, 3))]
    block = RowGradients(Lookups(torch.tensor([[7, 7]]), None, 2), torch.ones(1, 2, 3), (0, 1))
    with pytest.raises(IndexOutOfRange, match="table 1"):
        load(kernels).row_update(tables, [block], UpdateSettings(Rule.SGD, lr=0.1))


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_count_raises_and_counts_inside(kernels: str) -> None:
    memory = torch.zeros(15)
    load(kernels).count(memory[5:10], torch.tensor([[0, 4], [4, 4]], dtype=torch.int32), 0.5)
    assert memory.tolist() == [0.0] * 5 + [0.5, 0.0, 0.0, 0.0, 1.5] + [0.0] * 5
    columns = torch.tensor([[1, 4], [1, 4], [2, 4]])
    load(kernels).count(memory[5:10], columns[:, 0], 1.0)  # a column, as the lookups of one feature are
    assert memory[5:10].tolist() == [0.5, 2.0, 1.0, 0.0, 1.5]
    for bad in OUTSIDE:
        with pytest.raises(IndexOutOfRange):
            load(kernels).count(memory[5:10], torch.tensor([bad]), 1.0)
    assert memory[:5].sum() == 0 and memory[10:].sum() == 0


@pytest.mark.parametrize("offsets", [[0, 3, 2, 4], [-1, 0, 1, 4], [0, 1, 2, 5], [0, 2**40, 2**40, 4]])
@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_offsets_that_fall_or_leave_the_ids_raise(offsets: list[int], kernels: str) -> None:
    found = Lookups(torch.tensor([0, 1, 2, 3]), torch.tensor(offsets), 1)
    with pytest.raises(SlipstreamError, match="offsets"):
        load(kernels).pool([torch.zeros(5, 3)], found)
    with pytest.raises(SlipstreamError, match="offsets"):
        load(kernels).row_update(
            [TableState(torch.zeros(5, 3))], [RowGradients(found, torch.ones(3, 1, 3), (0,))], UpdateSettings(Rule.SGD)
        )


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_rows_that_are_not_contiguous_are_refused_not_overwritten(kernels: str) -> None:
    weight = torch.randn(3, 5).t()
    block = RowGradients(Lookups(torch.tensor([[1]]), None, 1), torch.ones(1, 1, 3), (0,))
    with pytest.raises(SlipstreamError, match="contiguous"):
        load(kernels).row_update([TableState(weight)], [block], UpdateSettings(Rule.SGD, lr=0.1))


BAD_OFFSETS = ([0, 3, 2, 4], [-1, 0, 1, 4], [0, 1, 2, 5], [0, 2**40, 2**40, 4], [0, 1, 4], [0, 1, 2, 3, 4])


@pytest.mark.parametrize("bad", OUTSIDE)
def test_the_classifier_raises(bad: int) -> None:
    marks = torch.ones(15, dtype=torch.uint8)[5:10]
    with pytest.raises(IndexOutOfRange):
        registry.count_marked([marks], torch.tensor([[1], [bad]]))
    with pytest.raises(IndexOutOfRange):
        bag = (torch.tensor([1, bad]), torch.tensor([0, 2]))
        registry.count_marked([marks], torch.zeros(1, 0, dtype=torch.int32), [bag])


@pytest.mark.parametrize("offsets", BAD_OFFSETS)
def test_bags_of_classifier_and_scout_lie_within_their_values(offsets: list[int]) -> None:
    bag = (torch.tensor([0, 1, 2, 3]), torch.tensor(offsets))
    ids = torch.zeros(3, 0, dtype=torch.int32)
    with pytest.raises(IndexOutOfRange, match="offsets"):
        registry.count_marked([torch.ones(5, dtype=torch.uint8)], ids, [bag])
    with pytest.raises(IndexOutOfRange, match="offsets"):
        registry.hash_lookups(ids, [bag], 8)


@pytest.mark.parametrize("bits", [1, 8, 31])
@pytest.mark.parametrize("bad", OUTSIDE)
def test_slots_of_any_id_are_within_the_scouts_table(bad: int, bits: int) -> None:
    slots, _ = registry.hash_lookups(torch.tensor([[bad, 0]]), [(torch.tensor([bad]), torch.tensor([0, 1]))], bits)
    assert 0 <= int(slots.min()) and int(slots.max()) < 1 << bits


@pytest.mark.parametrize("slot", [-1, 8, 2**31 - 1, -(2**31)])
def test_the_scout_raises_on_a_slot_outside(slot: int) -> None:
    memory = torch.zeros(30, 4)
    table, one = memory[10:20], torch.ones(1)  # 8 slots, the bias, one dense column
    slots, learn = torch.tensor([slot], dtype=torch.int32), torch.ones(1, dtype=torch.bool)
    with pytest.raises(IndexOutOfRange):
        registry.scout(table, slots, torch.tensor([0, 1]), torch.ones(1, 1), one, learn, 0.1)
    with pytest.raises(IndexOutOfRange):
        registry.scout(table, slots.abs() % 8, torch.tensor([0, 2]), torch.ones(1, 1), one, learn, 0.1)
    assert (memory == 0).all()


def test_vectors_and_gradients_of_another_shape_are_refused() -> None:
    for vectors in (torch.zeros(2, 3), torch.zeros(2, 0, 3), torch.zeros(2, 3, 3, dtype=torch.float64)):
        with pytest.raises(SlipstreamError):
            registry.dots(vectors, False)
    vectors = torch.zeros(2, 4, 3)
    for shape, ahead in (((2, 5), False), ((6,), False), ((2, 6), True), ((2, 9), False), ((3, 6), False)):
        with pytest.raises(SlipstreamError):
            registry.dots_gradients(vectors, torch.zeros(shape), ahead)
    with pytest.raises(SlipstreamError):
        registry.dots_gradients(vectors, torch.zeros(2, 6, dtype=torch.bfloat16), False)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    weight, lookups = torch.zeros(5, 3), Lookups(torch.zeros(4, 2, dtype=torch.int32), None, 2)
    with pytest.raises(SlipstreamError, match="1 tables"):
        cpu.pool([weight], lookups)
    for grad, tables in ((torch.zeros(3, 2, 3), (0, 0)), (torch.zeros(4, 2, 2), (0, 0)), (torch.zeros(4, 2, 3), (0,))):
        with pytest.raises(SlipstreamError, match="gradient"):
            cpu.row_update([TableState(weight)], [RowGradients(lookups, grad, tables)], UpdateSettings(Rule.SGD))
    found = Lookups(torch.zeros(4, dtype=torch.int64), torch.tensor([0, 4]), 1, sample_weights=torch.ones(3))
    block = RowGradients(found, torch.zeros(1, 1, 3), (0,))
    with pytest.raises(SlipstreamError, match="sample weights"):
        cpu.row_update([TableState(weight)], [block], UpdateSettings(Rule.SGD))


@pytest.mark.parametrize("bad", OUTSIDE)
def test_signals_count_inside_and_leave_the_rest_out(bad: int) -> None:
    exact, seen = np.zeros(15, dtype=np.int32), np.zeros(15, dtype=np.uint8)
    ids = np.array([0, 4, bad, 4], dtype=np.int64)
    assert compiled.count_exactly(exact[5:10], ids) == 1
    compiled.count_up_to(seen[5:10], ids, 255)
    for counts in (exact, seen):
        assert counts.tolist() == [0] * 5 + [1, 0, 0, 0, 2] + [0] * 5


@pytest.mark.parametrize("bad", OUTSIDE)
def test_the_sketch_raises(bad: int) -> None:
    sketch = PopularitySketch([5], None, width=16, depth=2, heavy=8)
    with pytest.raises(IndexOutOfRange):
        sketch.add(0, torch.tensor([0, bad]))


@pytest.mark.parametrize("bits", [1, 5])
def test_a_tally_of_any_score_is_within_its_bins(bits: int) -> None:
    """The bins of ``tally`` are those of the float's bits: infinity and NaN too fall into one."""
    scores = np.array([0.0, 1e-45, 1.0, 3.4e38, np.inf, np.nan], dtype=np.float32)
    low = 31 - bits
    mass, rows = np.zeros(1 << bits), np.zeros(1 << bits, dtype=np.int64)
    compiled.tally(scores.view(np.int32), scores, -1, low, mass, rows)
    assert rows.sum() == 5
