from __future__ import annotations

import sys
from pathlib import Path

import pytest

import slipstream
from slipstream.bench import BenchOptions, profile_step, run, workload


def test_operators_and_functions_are_listed_with_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    cardinalities = workload.cardinalities
    monkeypatch.setattr(workload, "cardinalities", lambda total=0: cardinalities(100_000))
    monkeypatch.setattr(workload, "BATCH_SIZE", 64)
    record = run("profile_step", BenchOptions(quick=True))
    for system in ("step float32", "step bf16"):
        kinds = [row["kind"] for row in record.rows if row["system"] == system]
        assert kinds.count("alone") == 1 and "torch" in kinds and "Python" in kinds
        for kind in ("torch", "Python"):
            shares = [row["share"] for row in record.rows if row["system"] == system and row["kind"] == kind]
            assert shares == sorted(shares, reverse=True) and 0.5 < sum(shares) <= 1.001
    text = record.model_dump_json()
    assert str(Path(slipstream.__file__).parent) not in text and sys.prefix not in text


def test_places_name_no_folder_of_this_machine() -> None:
    here = Path(slipstream.__file__).parent
    assert profile_step._place(str(here / "kernels" / "cpu.py"), "pool") == "slipstream/kernels/cpu.py: pool"
    assert profile_step._place("/home/x/site-packages/torch/nn/a.py", "f") == "torch/nn/a.py: f"
    assert profile_step._place("/home/x/script.py", "g") == "script.py: g"
    assert profile_step._place("~", "<built-in method mm>") == "<built-in method mm>"
