import pytest

from slipstream.bench import BenchOptions, loader, prepare, run, workload
from slipstream.errors import DataError


def test_prepare_measures_time_and_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(prepare, "QUICK", (4000, 1))
    monkeypatch.setattr(prepare, "_DEFAULT", tmp_path / "none")
    record = run("prepare", BenchOptions(quick=True, cache=tmp_path))
    assert record.ratios["polars"] > 0 and record.quality["rows per second"] > 0 and "made-up" in record.dataset
    assert [row["system"] for row in record.rows] == ["slipstream", "polars"]
    assert list(tmp_path.iterdir()) == []


def test_prepare_wants_a_criteo_file(tmp_path):
    (tmp_path / "x.csv").write_text("label,a\n1,2\n")
    with pytest.raises(DataError, match="not a Criteo TSV"):
        run("prepare", BenchOptions(quick=True, data=tmp_path / "x.csv"))


def test_loader_compares_with_the_dataloader_and_a_step(monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "QUICK", (20_000, 2, 2))
    monkeypatch.setattr(loader, "_PEER_BATCHES", {"a sample at a time": 1, "whole batches": 1})
    monkeypatch.setattr(workload, "TOTAL_ROWS", 100_000)
    cardinalities = workload.cardinalities
    monkeypatch.setattr(workload, "cardinalities", lambda total=0: cardinalities(100_000))
    record = run("loader", BenchOptions(quick=True, cache=tmp_path))
    assert len(record.ratios) == 4 and all(ratio > 0 for ratio in record.ratios.values())
    assert record.quality["rows per second in order"] > 0 and record.quality["rows per second shuffled"] > 0
    assert 0 <= record.quality["share of a training step waiting, in order"] <= 1
    assert list(tmp_path.iterdir()) == []
