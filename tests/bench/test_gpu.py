"""The GPU's benchmark: what it asks of the machine, and a trial of it on the CPU."""

from __future__ import annotations

import pytest
import torch

from slipstream.bench import BenchOptions, run
from slipstream.bench.gpu import Plan, measure
from slipstream.bench.gpu_workload import CRITEO_TERABYTE_CARDINALITIES, GATED, cold_gate, scaled, zipf_ids
from slipstream.errors import ConfigError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(ConfigError, match="needs a GPU"):
        run("gpu", BenchOptions(quick=True))


def test_tables_fit_what_they_are_given() -> None:
    for total in (1_000, 2_000_000, 60_000_000, 10**9):
        rows = scaled(total)
        assert len(rows) == 26 and sum(rows) <= total + 3 * 26 and min(rows) >= 3
    assert scaled(10**9) == CRITEO_TERABYTE_CARDINALITIES


def test_ids_stay_in_their_tables_and_gates_shut_the_share_they_should() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = (3, 1_000, 400_000)
    ids = zipf_ids(rows, 20_000, draw)
    assert ids.dtype == torch.int32
    for column, count in zip(ids.T, rows, strict=True):
        assert 0 <= int(column.min()) and int(column.max()) < count
    for column, count in ((1, 1_000), (2, 400_000)):
        shut = (cold_gate(count, torch.device("cpu"))[ids[:, column].long()] == 0).float().mean()
        assert abs(float(shut) - GATED) < 0.05


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_trial_on_the_cpu_measures_everything() -> None:
    plan = Plan(torch.device("cpu"), dims=(16,), batch_sizes=(32,), most_rows=500, rounds=1, steps=1)
    record = measure(plan)
    assert record.conditions["gpu"] == "none: a trial on the CPU"
    for name in ("sparse_adam", "sparse_adam_gated", "torch_adagrad", "bound_Adam", "gates_RowwiseAdagrad"):
        assert record.ratios[f"{name}_dim16_batch32"] > 0
    assert {"torch_dense_dim16_batch32", "dlrm_torch", "dlrm_gates"} <= record.ratios.keys()
    assert max(record.quality.values()) < 1e-4
