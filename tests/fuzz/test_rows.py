from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.fuzz import __main__ as command
from tests.fuzz.campaign import Outcome
from tests.fuzz.rows import Row, added, kept, present_source, summed_up

import slipstream
from slipstream.report.record import Record


def row(name: str, minutes: float, source: str | None, *, finding: str | None = None) -> Row:
    return added(None, Outcome(name, inputs=10, seconds=60 * minutes, finding=finding), f"commit of {source}", source)


def saved(path: Path, *rows: Row) -> Path:
    return Record(name="fuzz", rows=[*rows]).save(path)


def test_minutes_add_up(tmp_path: Path) -> None:
    first = added(None, Outcome("csv", inputs=10, seconds=60.0, finding="ValueError: x"), "abc", "tree")
    both = added(first, Outcome("csv", inputs=5, seconds=30.0), "abd", "tree")
    assert both == {
        "target": "csv", "commit": "abd", "source": "tree", "inputs": 15, "processor minutes": 1.5, "findings": 1,
        "finding": "ValueError: x",
    }  # fmt: skip
    path = tmp_path / "fuzz.json"
    assert kept(path, "tree") == ({}, {})
    saved(path, both)
    assert kept(path, "tree") == ({"csv": both}, {})
    earlier = {
        "target": "csv", "commit": "abd", "source": "earlier", "inputs": 15, "processor minutes": 1.5, "findings": 1,
    }  # fmt: skip
    assert kept(path, "later") == kept(path, None) == ({}, {"csv": earlier})
    Record(name="step", rows=[both]).save(path)
    assert kept(path, "tree") == ({}, {})


def test_rows_of_earlier_sources_become_one(tmp_path: Path) -> None:
    old, changed, new = row("csv", 30.0, "old", finding="ValueError: x"), row("csv", 2.0, None), row("csv", 1.0, "new")
    path = saved(tmp_path / "fuzz.json", old, changed, new, row("set", 3.0, "old"))
    present, earlier = kept(path, "new")
    assert present == {"csv": new}
    assert (earlier["csv"]["inputs"], earlier["csv"]["processor minutes"], earlier["csv"]["findings"]) == (20, 32.0, 1)
    record = summed_up(Record(name="fuzz"), present, earlier)
    assert record.rows == [earlier["csv"], new, earlier["set"]]
    assert {key: record.conditions[key] for key in record.conditions if "least" in key or "finding" in key} == {
        "least_processor_minutes": 3.0,
        "least_processor_minutes_of_this_source": 0.0,
        "findings_mended": 1,
    }
    record.save(path)
    assert kept(path, "newer")[1]["csv"]["processor minutes"] == 33.0


def test_the_source_is_the_package_whatever_else_a_commit_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, page = tmp_path / "src" / "slipstream" / "__init__.py", tmp_path / "README.md"
    code.parent.mkdir(parents=True)
    monkeypatch.setattr(slipstream, "__file__", str(code))

    def git(*command: str) -> None:
        who = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
        subprocess.run(["git", "-C", tmp_path, *who, *command], check=True)

    def committed() -> str | None:
        git("add", ".")
        git("commit", "--quiet", "--message", "a change")
        return present_source()

    code.write_text("first")
    assert present_source() is None
    git("init", "--quiet")
    assert present_source() is None
    first = committed()
    page.write_text("a page")
    assert first is not None and present_source() == first == committed()
    code.write_text("second")
    assert present_source() is None
    assert committed() not in (None, first)


def run(
    monkeypatch: pytest.MonkeyPatch, record: Path, *arguments: str, outcomes: tuple[Outcome, ...] = ()
) -> tuple[int, list[tuple[str, float]]]:
    """The status of the command and the work that it hands out."""
    tried: list[tuple[str, float]] = []

    def fake(work: list[tuple[str, float]], *_: object, **__: object) -> Generator[Outcome]:
        tried.extend(work)
        yield from outcomes

    monkeypatch.setattr(command, "present_source", lambda: "new")
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    monkeypatch.setattr(command, "campaign", fake)
    monkeypatch.setattr(sys, "argv", ["fuzz", *arguments, "--record", str(record)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    return int(ended.value.code or 0), tried


def test_a_finding_is_one_of_its_source_until_the_source_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(
        tmp_path / "fuzz.json",
        row("csv", 0.5, "new", finding="ValueError: x"),
        row("set", 1.0, "new"),
        row("config", 2.0, "old", finding="ValueError: y"),
    )
    assert run(monkeypatch, path, "2", "csv", "set") == (1, [("set", 60.0)])
    assert "csv: FINDING of an earlier run: ValueError: x; see runs/fuzz/csv.*" in capsys.readouterr().out
    assert run(monkeypatch, path, "2", "set") == (0, [("set", 60.0)])
    again = Outcome("config", inputs=1, seconds=60.0)
    assert run(monkeypatch, path, "3", "config", outcomes=(again,)) == (0, [("config", 60.0)])
    assert [one.get("finding") for one in Record.load(path).rows if one["target"] == "config"] == [None, None]


def test_the_least_fuzzed_targets_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(
        tmp_path / "fuzz.json",
        row("csv", 2.01, "old"),
        row("set", 2.0, "new"),
        row("config", 0.25, "old"),
        row("config", 1.5, "new"),
        row("schema", 1.0, "new"),
    )
    status, work = run(monkeypatch, path, "2", "csv", "set", "config", "schema", "model")
    assert (status, work) == (0, [("model", 120.0), ("schema", 60.0), ("config", 15.0)])
