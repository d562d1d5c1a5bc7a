"""The GPU's benchmark: what it asks of the machine, and a trial of it on the CPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from slipstream.bench import BenchOptions, run
from slipstream.bench.gpu import Plan, measure
from slipstream.bench.gpu_overlap import covered, merged
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


def trial(**settings: Any) -> Plan:
    small = {"dims": (16,), "batch_sizes": (32,), "most_rows": 500, "rounds": 1, "steps": 1, "host_batches": 4}
    data = {"data": ("movietweetings",), "samples": 1_500, "train_batch": 64}
    return Plan(torch.device("cpu"), **{**small, **data, **settings})


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_trial_on_the_cpu_measures_everything(tmp_path: Path) -> None:
    record = measure(trial(cache=tmp_path))
    assert record.conditions["gpu"] == "none: a trial on the CPU"
    for name in ("sparse_adam", "sparse_adam_gated", "torch_adagrad", "bound_Adam", "gates_RowwiseAdagrad"):
        assert record.ratios[f"{name}_dim16_batch32"] > 0
    assert {"torch_dense_dim16_batch32", "dlrm_torch", "dlrm_gates", "host_cached"} <= record.ratios.keys()
    assert record.ratios["host_bytes_saturation"] > 0.0
    assert {point["policy"] for point in record.points} >= {"none", "random", "saturation", "psse"}
    rows = {row["system"]: row for row in record.rows}
    through, cached = rows["host memory, all through the bus"], rows["host memory, cached"]
    assert through["share_on_the_card"] == 0.0 and 0 < cached["bytes_per_step"] < through["bytes_per_step"]
    missing = [name for name in record.conditions if name.startswith("missing_")]
    assert missing == ["missing_fbgemm_dim16_batch32"]
    assert max(value for name, value in record.quality.items() if "largest" in name) < 1e-4


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_finds_no_time_is_left_out_and_named() -> None:
    record = measure(trial(seconds=0.0))
    assert not record.ratios
    named = {name for name in record.conditions if name.startswith("missing_")}
    assert named == {f"missing_{part}" for part in ("tables", "host", "model", "frontier_movietweetings",
                                                    "host_bytes", "dense_16")}  # fmt: skip


def test_a_missing_data_set_costs_the_others_nothing(tmp_path: Path) -> None:
    record = measure(trial(data=("globo",), folder=tmp_path, cache=tmp_path))
    assert "no such data" in record.conditions["missing_frontier_globo"] and "host_cached" in record.ratios


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_part_that_does_not_fit_costs_the_others_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_small(*_: object) -> None:
        raise ConfigError("a step needs 9 rows on the card, which holds 8")

    monkeypatch.setattr("slipstream.bench.gpu_trainings.bytes_over_the_bus", too_small)
    record = measure(trial(cache=tmp_path, data=("movietweetings",)))
    assert "needs 9 rows" in record.conditions["missing_host_bytes"] and "torch_dense_dim16_batch32" in record.ratios


def test_overlap_is_the_share_of_copies_under_kernels() -> None:
    assert merged([(4, 5), (0, 2), (1, 3)]) == [(0, 3), (4, 5)]
    assert covered([(0, 4), (6, 8)], [(3, 7), (1, 2), (20, 30)]) == 1 + 1 + 1
    assert covered([], [(0, 1)]) == covered([(0, 1)], []) == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("target", ["bench-gpu", "test-gpu"])
def test_a_python_whose_torch_sees_a_gpu_is_used_as_it_is(target: str) -> None:
    command = ["make", "--dry-run", "--always-make", target, "GPU_PYTHON=python3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert "python3 -m " in done.stdout and "pip install --quiet" not in done.stdout and ".venv" not in done.stdout
