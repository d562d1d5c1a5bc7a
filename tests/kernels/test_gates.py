"""Gates: what is frozen, what is drawn, and how often."""

from __future__ import annotations

import pytest
import torch
from tests.backends import BACK_ENDS, load
from tests.interpreter import ON_GPU

from slipstream.kernels import hashing, registry
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableState, UpdateSettings

ROWS = 20_000
FEW_ROWS = 1_500
"""For Triton's interpreter."""


def updated(gate: int, step: int, seed: int, kernels: str = "cpu") -> torch.Tensor:
    """Which of ROWS rows (or FEW_ROWS) a step updates when all have one gate."""
    rows = FEW_ROWS if kernels == "cuda" and not ON_GPU else ROWS
    table = TableState(torch.zeros(rows, 3), gate=torch.full((rows,), gate, dtype=torch.uint8), seed=seed)
    block = RowGradients(
        Lookups(torch.arange(rows).unsqueeze(1), None, 1), torch.ones(1, 1, 3).expand(rows, 1, 3), (0,)
    )
    counts = load(kernels).row_update([table], [block], UpdateSettings(Rule.SGD, step, 1.0))
    open_rows = table.weight[:, 0] != 0
    assert counts.skipped == [rows - int(open_rows.sum())] and counts.rows == [int(open_rows.sum())]
    return open_rows


@pytest.mark.parametrize("gate", [1, 64, 128, 200, 254])
def test_rate_is_the_gate_over_256(gate: int) -> None:
    p = gate / 256
    for step in (1, 2, 1000):
        share = updated(gate, step, seed=3).float().mean().item()
        assert abs(share - p) < 5 * (p * (1 - p) / ROWS) ** 0.5


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_shut_and_open_gates_draw_nothing(kernels: str) -> None:
    assert not updated(0, 1, 0, kernels).any()
    assert updated(255, 1, 0, kernels).all()


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_draws_are_the_hash_and_reproducible(kernels: str) -> None:
    for step, seed in ((1, 0), (7, 123), (2**40, 2**63 + 5)):
        found = updated(100, step, seed, kernels)
        assert torch.equal(found, hashing.gate_draw(torch.arange(len(found)), step, seed) < 100)
        assert torch.equal(updated(100, step, seed, kernels), found)


def test_draws_of_other_steps_and_seeds_are_independent() -> None:
    base = updated(128, 1, 0)
    for other in (updated(128, 2, 0), updated(128, 1, 1)):
        agreement = (base == other).float().mean().item()
        assert abs(agreement - 0.5) < 5 * 0.5 / ROWS**0.5


def test_a_lower_gate_opens_a_subset() -> None:
    assert not (updated(60, 5, 0) & ~updated(61, 5, 0)).any()


def test_hash_is_splitmix64() -> None:
    # First outputs of SplitMix64 seeded with 0 (Vigna's splitmix64.c); its n-th state is n times the golden ratio.
    expected = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC)
    found = hashing.mix(torch.arange(1, 5), step=0, seed=0).tolist()
    assert [value & 0xFFFFFFFFFFFFFFFF for value in found] == list(expected)


def test_uniform_numbers_are_uniform_and_keyed() -> None:
    u = registry.hash_uniform(torch.arange(100_000), seed=1, step=2)
    assert u.dtype == torch.float32 and 0 <= float(u.min()) and float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 5 / (12 * 100_000) ** 0.5
    counts = torch.histc(u, 64, 0, 1)
    assert float(((counts - 100_000 / 64).square() / (100_000 / 64)).sum()) < 63 + 6 * (2 * 63) ** 0.5
    assert torch.equal(u, registry.hash_uniform(torch.arange(100_000), seed=1, step=2))
    assert not torch.equal(u, registry.hash_uniform(torch.arange(100_000), seed=1, step=3))


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_gates_skip_lookups_with_their_duplicates_and_all_their_state(kernels: str) -> None:
    table = TableState(
        torch.ones(4, 3), torch.ones(4, 3), torch.ones(4, 3), torch.tensor([255, 0, 255, 0], dtype=torch.uint8),
        torch.zeros(4, dtype=torch.int32),
    )  # fmt: skip
    block = RowGradients(Lookups(torch.tensor([[0], [1], [1], [3], [0]]), None, 1), torch.ones(5, 1, 3), (0,))
    counts = load(kernels).row_update([table], [block], UpdateSettings(Rule.ADAM, 9, 0.1, 1e-8, 0.9, 0.99, 0.1, True))
    assert (counts.lookups, counts.skipped, counts.rows) == ([5], [3], [1])
    for tensor in (table.weight, table.first, table.second):
        assert tensor is not None and (tensor[1:] == 1).all() and (tensor[0] != 1).all()
    assert table.last_step is not None and table.last_step.tolist() == [9, 0, 0, 0]


def lookups_of(rows: int, batch: int) -> Lookups:
    """All rows in turn, one a sample."""
    return Lookups((torch.arange(batch) % rows).unsqueeze(1), None, 1)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_gates_by_sample_draw_for_each_lookup_and_weigh_what_is_kept(kernels: str) -> None:
    rows, batch = 6, 300
    gate = torch.tensor([255, 0, 64, 128, 254, 1], dtype=torch.uint8)
    table = TableState(torch.zeros(rows, 3), gate=gate, seed=5, by_sample=True)
    found = lookups_of(rows, batch)
    block = RowGradients(found, torch.ones(1, 1, 3).expand(batch, 1, 3), (0,))
    counts = load(kernels).row_update([table], [block], UpdateSettings(Rule.SGD, 4, 1.0))
    ids = found.ids[:, 0]
    draws = hashing.gate_draw(ids, 4, 5, torch.arange(batch))
    kept = (gate[ids] == 255) | (draws < gate[ids])
    each = torch.bincount(ids[kept], minlength=rows).float()
    weight = torch.where(gate == 255, 1.0, 256.0 / gate.clamp(min=1).float())
    torch.testing.assert_close(table.weight[:, 0], -each * weight)
    assert counts.skipped == [batch - int(kept.sum())] and counts.rows == [int((each > 0).sum())]


def test_gradients_of_gates_by_sample_are_those_of_all_lookups_on_average() -> None:
    gate, steps = torch.tensor([40, 200, 255], dtype=torch.uint8), 4_000
    table = TableState(torch.zeros(3, 1), gate=gate, seed=1, by_sample=True)
    block = RowGradients(lookups_of(3, 30), torch.ones(1, 1, 1).expand(30, 1, 1), (0,))
    for step in range(1, steps + 1):
        load("cpu").row_update([table], [block], UpdateSettings(Rule.SGD, step, 1.0))
    p = torch.where(gate == 255, 1.0, gate / 256)
    spread = (10 * (1 - p) / p / steps).sqrt()
    assert ((table.weight[:, 0] / -steps - 10).abs() <= 5 * spread + 1e-4).all()


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_lookups_of_a_row_in_one_bag_share_a_draw(kernels: str) -> None:
    bags = 200
    ids = torch.zeros(3 * bags, dtype=torch.int64)
    block = RowGradients(Lookups(ids, torch.arange(bags + 1) * 3, 1), torch.ones(bags, 1, 2), (0,))
    table = TableState(torch.zeros(1, 2), gate=torch.tensor([128], dtype=torch.uint8), by_sample=True)
    counts = load(kernels).row_update([table], [block], UpdateSettings(Rule.SGD, 1, 1.0))
    assert counts.skipped[0] % 3 == 0 and abs(counts.skipped[0] / (3 * bags) - 0.5) < 5 * 0.5 / bags**0.5
    assert float(table.weight[0, 0]) == pytest.approx(-2.0 * (3 * bags - counts.skipped[0]))
