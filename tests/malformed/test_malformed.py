"""Every case of the corpus ends in one line that names place and remedy, with status 2, and leaves nothing behind."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.malformed.corpus import FIXTURES, Case, all_cases
from tests.malformed.parquet import GOOD

from slipstream.cli.entry import run

CASES = list(all_cases())
SECONDS = 60
"""Far above what any case takes here (5 s, compilation included): what it guards against has no end at all."""
GIBIBYTES = 4
"""By which the memory of the process may grow over the whole corpus; the largest file unpacks to 128 MiB."""


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    before = peak()
    yield
    assert peak() - before < GIBIBYTES << 30


@pytest.fixture(autouse=True)
def away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")


def test_the_corpus_is_large_and_its_names_are_distinct() -> None:
    names = [case.name for case in CASES]
    assert len(names) >= 300 and len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_refused(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    arguments = case.build(folder)
    before = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        status = run(arguments)
    said = capfd.readouterr()
    assert time.monotonic() - before < SECONDS
    (line,) = said.err.splitlines()
    assert status == 2 and line.startswith("slipstream: ")
    assert all(text in line for text in case.says), line
    assert "; " in line, f"no remedy: {line}"
    assert line.isprintable()
    # Nothing half-written: no temporary name, no data set, no model. A training that had begun leaves its log.
    assert not list(folder.rglob(".*"))
    out = folder / "out"
    if out.is_dir():
        assert {entry.name for entry in out.iterdir()} <= {"config.yaml", "metrics.jsonl"}
    # Thousands of small folders and some files of 70 MB are not kept for later.
    shutil.rmtree(folder)


BY_PROCESS = (
    "csv/a program",
    "parquet parquet/cut at the end",
    "train config/a billion laughs",
    "no such command",
)


@pytest.mark.parametrize("name", BY_PROCESS)
def test_refused_by_the_program(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    command = [sys.executable, "-m", "slipstream", *case.build(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("slipstream: ") and "; " in line
    if name != BY_PROCESS[0]:
        return
    debugged = subprocess.run([*command, "--debug"], capture_output=True, text=True, timeout=120, check=False)
    assert debugged.returncode == 1 and "Traceback" in debugged.stderr


def test_a_file_that_may_not_be_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "table.csv"
    shutil.copy(FIXTURES / "clicks.csv", file)
    file.chmod(0)
    as_root = os.geteuid() == 0
    if as_root:
        os.seteuid(65534)
    try:
        status = run(["prepare", str(file), str(tmp_path / "out")])
    finally:
        if as_root:
            os.seteuid(0)
    (line,) = capfd.readouterr().err.splitlines()
    assert status == 2 and str(tmp_path) in line and "ermission" in line


def test_a_folder_that_may_not_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    status = run(["compare", str(FIXTURES / "run_v1"), "--csv", str(tmp_path / "file" / "x.csv")])
    (line,) = capfd.readouterr().err.splitlines()
    assert status == 2 and str(tmp_path / "file") in line and "; " in line


def test_what_only_looks_wrong_is_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = (FIXTURES / "clicks.csv").read_bytes()
    (tmp_path / "clicks.csv").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    (tmp_path / "schema.yaml").write_bytes(b"\xef\xbb\xbf" + (FIXTURES / "schema.yaml").read_bytes() + b"# end")
    schema = ["--schema", str(tmp_path / "schema.yaml")]
    assert run(["prepare", str(tmp_path / "clicks.csv"), str(tmp_path / "a"), *schema]) == 0
    assert run(["prepare", str(FIXTURES / "clicks.csv"), str(tmp_path / "b"), *schema]) == 0
    assert capfd.readouterr().err == ""
    for name in ("ids.i32", "dense.f32", "labels.u8", "time.i64"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", GOOD)
def test_metadata_of_parquet_may_be_any_bytes(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Found by fuzzing: Polars ended in a panic.
    odd = {b"ARROW:s\x91hema": b"\xff"}
    table = pa.table(GOOD[name])
    schema = pa.schema([field.with_metadata(odd) for field in table.schema], metadata=odd)
    pq.write_table(table.cast(schema), tmp_path / "table.parquet")
    status = run(["prepare", str(tmp_path / "table.parquet"), str(tmp_path / "out"), "--format", name])
    assert status == 0 and capfd.readouterr().err == ""
