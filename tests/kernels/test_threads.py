"""The same bits for any number of threads, on OpenMP's and on Python's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.properties.cases import copies, written

from slipstream.kernels import cpu, parallel
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableState, UpdateSettings

BATCH, DIM = 257, 16
ROWS = (3, 1, 1000, 60)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def skewed(rows: int, count: int, seed: int) -> torch.Tensor:
    """Ids of which few are hot and many are rare."""
    u = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return (rows * u**4).long().clamp(max=rows - 1)


def work() -> tuple[list[TableState], list[RowGradients]]:
    tables = []
    for position, rows in enumerate(ROWS):
        gate = None if position % 2 else (torch.arange(rows) * 37 % 256).to(torch.uint8)
        first, second = random(rows, DIM).abs(), random(rows, DIM).square()
        tables.append(TableState(random(rows, DIM), first, second, gate, scale=0.3, seed=position))
        tables[-1].by_sample = position == 2
    one_hot = Lookups(torch.stack([skewed(rows, BATCH, rows) for rows in ROWS], dim=1).int(), None, len(ROWS))
    lengths = torch.arange(2 * BATCH) % 5
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    ids = torch.cat([skewed(60, int(lengths[:BATCH].sum()), 1), skewed(1000, int(lengths[BATCH:].sum()), 2)])
    bags = Lookups(ids, offsets, 2, random(len(ids)))
    return tables, [
        RowGradients(one_hot, random(BATCH, len(ROWS), DIM), (0, 1, 2, 3)),
        RowGradients(bags, random(BATCH, 2, DIM), (3, 2)),
    ]


@pytest.mark.parametrize("rule", list(Rule), ids=lambda rule: rule.name)
def test_row_update_is_bit_identical_for_any_number_of_threads(
    rule: Rule, set_threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    real = parallel.run
    monkeypatch.setattr(parallel, "run", lambda worker, arguments, n: (used.append(n), real(worker, arguments, n)))
    tables, gradients = work()
    if rule == Rule.ROWWISE_ADAGRAD:
        for table in tables:
            assert table.first is not None
            table.first = table.first[:, 0].contiguous()
    settings = UpdateSettings(rule, 3, 0.1, 1e-8, 0.9, 0.99, 0.01)
    results, counts = [], []
    for threads in (1, 2, 3, 4, 4):
        set_threads(threads)
        after = copies(tables)
        counts.append(cpu.row_update(after, gradients, settings))
        results.append(after)
    assert used == [1, 2, 3, 4, 4]
    for after, count in zip(results[1:], counts[1:], strict=True):
        assert (count.lookups, count.skipped, count.rows) == (counts[0].lookups, counts[0].skipped, counts[0].rows)
        assert count.squared_norm == pytest.approx(counts[0].squared_norm, rel=1e-12)
        for one, many in zip(results[0], after, strict=True):
            for name, value in written(one).items():
                assert torch.equal(value, written(many)[name]), name
    changed = any(not torch.equal(one.weight, old.weight) for one, old in zip(results[0], tables, strict=True))
    assert changed == (rule != Rule.NORM)


@pytest.mark.parametrize("bags", [False, True])
def test_pool_is_bit_identical_for_any_number_of_threads(bags: bool, set_threads: Callable[[int], None]) -> None:
    tables, gradients = work()
    block = gradients[bags]
    weights = [tables[table].weight for table in block.tables]
    results = []
    for threads in (1, 2, 3, 4):
        set_threads(threads)
        results.append(cpu.pool(weights, block.lookups))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_python_threads_give_the_same_bits(set_threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    tables, gradients = work()
    settings = UpdateSettings(Rule.ADAM, 3, 0.1, 1e-8, 0.9, 0.99)
    set_threads(1)
    one = copies(tables)
    cpu.row_update(one, gradients, settings)
    set_threads(3)
    monkeypatch.setattr(parallel, "_gomp_parallel", lambda: None)
    assert parallel.threading_layer() == "python"
    many = copies(tables)
    cpu.row_update(many, gradients, settings)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(one, many, strict=True))


def test_kernels_run_on_an_openmp_library_that_torch_has_loaded() -> None:
    if not parallel._loaded_openmp():
        pytest.skip("torch came without an OpenMP library")
    assert parallel.threading_layer().startswith(("libgomp", "libiomp5", "libomp"))
