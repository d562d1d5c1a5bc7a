from __future__ import annotations

import getpass
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest

from slipstream.errors import DataError
from slipstream.report import machine
from slipstream.report.machine import describe_machine, instructions, spin_setting, versions
from slipstream.report.record import Record
from slipstream.report.timing import alternate, summarise


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    record = Record(name="step", ratios={"torch": 1.5}, quality={"auc": 0.8}, rows=[{"p50": 0.001, "peer": "torch"}])
    file = record.save(tmp_path / "deep" / "step.json")
    assert Record.load(file) == record
    assert [path.name for path in file.parent.iterdir()] == ["step.json"]


def test_a_record_says_where_it_was_measured_and_not_by_whom() -> None:
    record = Record(name="step", command="slipstream bench step")
    assert record.machine.cores >= 1 and record.machine.memory_gib > 0
    assert record.versions["python"].startswith("3.") and "torch" in record.versions
    text = record.model_dump_json()
    assert socket.gethostname() not in text
    assert f'"{getpass.getuser()}"' not in text and str(Path.home()) not in text


def test_a_record_made_anew_does_not_make_the_tree_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, kept = tmp_path / "src" / "machine.py", tmp_path / "benchmarks" / "results" / "step.json"
    for file in (code, kept):
        file.parent.mkdir(parents=True)
        file.write_text("a\n", encoding="utf-8")
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "a")):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    monkeypatch.setattr(machine, "__file__", str(code))
    clean = machine.commit()
    assert machine.commit(code) == clean and machine.commit(tmp_path / "installed.py") is None
    kept.write_text("b\n", encoding="utf-8")
    assert clean is not None and machine.commit() == clean and len(clean) == 12
    code.write_text("b\n", encoding="utf-8")
    assert machine.commit() == f"{clean}-dirty"


@pytest.mark.parametrize("text", ["", "[]", '{"name": "x", "unheard_of": 1}'])
def test_a_file_that_is_no_record_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"r\.json.*: (not a benchmark record|is not JSON)"):
        Record.load(file)
    with pytest.raises(DataError, match="no such record"):
        Record.load(tmp_path / "none.json")


def test_percentiles_are_numpys() -> None:
    seconds = [3.0, 1.0, 2.0, 10.0]
    assert summarise(seconds) == {f"p{p}": float(np.percentile(seconds, p)) for p in (20, 50, 80)}
    assert summarise([2.0]) == {"p20": 2.0, "p50": 2.0, "p80": 2.0}


def test_functions_are_timed_in_turn() -> None:
    calls: list[str] = []
    timed = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warm_up=2)
    assert "".join(calls) == "aabb" + "ab" * 3
    assert {name: len(seconds) for name, seconds in timed.items()} == {"a": 3, "b": 3}


def test_the_spin_setting_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert spin_setting() is None
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert spin_setting() == "OMP_WAIT_POLICY=PASSIVE"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert spin_setting() == describe_machine().spin_count == "GOMP_SPINCOUNT=7"


def test_versions_name_distributions_only() -> None:
    assert all(value and not value.startswith("/") for value in versions().values())


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("model name\t: A\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", "AVX-512 bf16"),
        ("flags\t\t: fpu avx2\n", "AVX2"),
        ("Features\t: fp asimd bf16\n", "NEON bf16"),
        ("flags\t\t: fpu sse2\n", None),
        ("", None),
    ],
)
def test_the_best_instructions_are_named(said: str, found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: said)
    assert instructions() == found
