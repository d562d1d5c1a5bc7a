from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from contextlib import closing
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import cast

import pytest
from tests.fuzz import __main__ as command
from tests.fuzz.campaign import Outcome, Tally, _Running, campaign
from tests.fuzz.fakes import task
from tests.fuzz.fuzzing import fuzz

from slipstream.report.record import Record


def test_every_target_ends_and_what_is_found_is_told_apart(tmp_path: Path) -> None:
    work = [(name, 1.0) for name in ("passes", "fails", "dies")]
    ended = {one.name: one for one in campaign(work, task, jobs=2, folder=tmp_path) if one.ended}
    assert [*sorted(ended)] == ["dies", "fails", "passes"]
    assert all(one.inputs == 3 and one.seconds == 1.0 for one in ended.values())
    assert ended["passes"].finding is None
    assert ended["fails"].finding == "ValueError: a reader's own (status 1)"
    assert ended["dies"].finding == "the process was ended by SIGSEGV"
    assert {path.stem for path in tmp_path.iterdir()} == {"dies", "fails"}
    assert (tmp_path / "fails.input").read_bytes() == b"fails"
    assert "Traceback" in (tmp_path / "fails.txt").read_text()


def test_a_process_in_which_nothing_moves_is_ended_and_none_outlives_the_campaign(tmp_path: Path) -> None:
    (outcome,) = (
        one for one in campaign([("waits", 1.0)], task, jobs=1, folder=tmp_path, quiet=0.3, tick=0.1) if one.ended
    )
    assert outcome.finding == "no input was finished in 0.005 minutes"
    with closing(campaign([("waits", 1.0)], task, jobs=1, folder=tmp_path, tick=0.1)) as outcomes:
        assert not next(outcomes).ended
        assert multiprocessing.active_children()
    assert not multiprocessing.active_children()


def test_a_stopped_process_may_be_quiet() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        one = _Running("csv", cast("SpawnProcess", process), Tally(), Path("unused"))
        try:
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            assert not any(one.is_quiet(10.0, 30.0) for _ in range(10))
            process.send_signal(signal.SIGCONT)
            os.waitid(os.P_PID, process.pid, os.WCONTINUED)
            assert [one.is_quiet(10.0, 30.0) for _ in range(3)] == [False, False, True]
            one.tally.inputs += 1
            assert not one.is_quiet(10.0, 30.0)
        finally:
            process.kill()


def test_time_is_that_of_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(i) for i in range(1_000_000))
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    tally, before = Tally(), signal.getsignal(signal.SIGPROF)
    try:
        fuzz("set", 20.0, tally, tmp_path / "kept")
    finally:
        signal.signal(signal.SIGPROF, before)
    assert tally.seconds >= 20.0 and 0 < tally.inputs < 20
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_minutes_add_up_on_one_commit_only(tmp_path: Path) -> None:
    row = command.added(None, Outcome("csv", inputs=10, seconds=60.0, finding="ValueError: x"))
    row = command.added(row, Outcome("csv", inputs=5, seconds=30.0))
    assert row == {"target": "csv", "inputs": 15, "processor minutes": 1.5, "findings": 1, "finding": "ValueError: x"}
    path = tmp_path / "fuzz.json"
    assert command.earlier(path, "abc") == {}
    command.summed_up(Record(name="fuzz", commit="abc"), {"csv": row}).save(path)
    assert command.earlier(path, "abc") == {"csv": row}
    assert command.earlier(path, "abd") == {} == command.earlier(path, None)
    Record(name="fuzz", commit="abc-dirty", rows=[row]).save(path)
    assert command.earlier(path, "abc-dirty") == {}
