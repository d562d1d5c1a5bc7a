"""Which back end runs, and sizes at the edge."""

from __future__ import annotations

import pytest
import torch

from slipstream.errors import IndexOutOfRange
from slipstream.kernels import reference, registry
from slipstream.kernels.parallel import SlowPathWarning
from slipstream.kernels.types import Lookups, RowGradients, Rule, TableState, UpdateSettings


def test_back_ends_by_dtype() -> None:
    assert registry.backend_name(torch.zeros(1)) == "cpu"
    registry._say_slow.cache_clear()
    with pytest.warns(SlowPathWarning, match="float64"):
        assert registry.backend_name(torch.zeros(1, dtype=torch.float64)) == "reference"


@pytest.mark.filterwarnings("ignore::slipstream.kernels.parallel.SlowPathWarning")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_work_and_keep_their_dtype(dtype: torch.dtype) -> None:
    table = TableState(torch.ones(5, 3, dtype=dtype))
    found = Lookups(torch.tensor([[1], [1]]), None, 1)
    assert registry.pool([table.weight], found, dtype).dtype == dtype
    registry.row_update([table], [RowGradients(found, torch.ones(2, 1, 3), (0,))], UpdateSettings(Rule.SGD, 1, 0.25))
    assert table.weight[:, 0].tolist() == [1.0, 0.5, 1.0, 1.0, 1.0] and table.weight.dtype == dtype


def test_a_table_beyond_2_31_elements_is_addressed_right(tmp_path) -> None:
    rows, dim = 2**25 + 3, 64  # 8.6 GB in a sparse file: only the pages in use take space
    path = tmp_path / "table.f32"
    weight = torch.from_file(str(path), shared=True, size=rows * dim).view(rows, dim)
    last = rows - 1
    weight[last] = 3.0
    found = Lookups(torch.tensor([[last], [0], [last]]), None, 1)
    assert registry.pool([weight], found)[:, 0, 0].tolist() == [3.0, 0.0, 3.0]
    registry.row_update(
        [TableState(weight)], [RowGradients(found, torch.ones(3, 1, dim), (0,))], UpdateSettings(Rule.SGD, 1, 0.5)
    )
    assert (weight[last] == 2.0).all() and (weight[0] == -0.5).all() and (weight[last - 1] == 0).all()
    with pytest.raises(IndexOutOfRange):
        registry.pool([weight], Lookups(torch.tensor([[rows]]), None, 1))


def test_no_gradients_change_nothing() -> None:
    table = TableState(torch.ones(5, 3), torch.ones(5, 3), torch.ones(5, 3))
    counts = registry.row_update([table], [], UpdateSettings(Rule.ADAM, 1, 0.1, 1e-8, 0.9, 0.99, 0.5, True))
    assert (counts.lookups, counts.skipped, counts.rows) == ([0], [0], [0])
    assert (table.weight == 1).all()


def test_norm_counts_each_row_once_with_all_its_gradients() -> None:
    found = Lookups(torch.tensor([[2], [2], [0]]), None, 1)
    block = RowGradients(found, torch.ones(3, 1, 3), (0,))
    for rule_of in (registry, reference):
        counts = rule_of.row_update([TableState(torch.zeros(5, 3), scale=2.0)], [block], UpdateSettings(Rule.NORM))
        assert counts.squared_norm == [3 * 4.0**2 + 3 * 2.0**2]
