from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import time
from contextlib import closing
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import cast

import pytest
from tests.fuzz.campaign import Tally, _last_line, _Running, campaign
from tests.fuzz.fakes import task
from tests.fuzz.fuzzing import fuzz, memory_limited
from tests.fuzz.targets import check


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


def test_the_exception_is_found_whatever_its_name(tmp_path: Path) -> None:
    output = tmp_path / "csv.txt"
    frames = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    f()\n    ^^^\n'
    first = f"Process SpawnProcess-1:\n{frames}KeyError: 'Error: no'\n\nDuring handling, another occurred:\n\n"
    notes = "Falsifying example: examples(\n    data=data(...),\n)\nDraw 1: b'Error: x'\nError: of another's\n"
    for raised in ("tests.fuzz.fuzzing.Hang: an input took more than 60 s", "MemoryError", "ValueError: of ours"):
        output.write_text(f"{first}{frames}{raised}\n{notes}")
        assert _last_line(output) == raised
    group = "".join(f"    | {line}\n" for line in [*frames.splitlines(), "OSError: second"])
    header = "  + Exception Group Traceback (most recent call last):\n  |   File\n  | ExceptionGroup: two\n"
    output.write_text(f"{header}  +-+------ 1 ------\n{group}    +------\n")
    assert _last_line(output) == "OSError: second"
    output.write_text("Fatal Python error\n\n")
    assert _last_line(output) == "Fatal Python error"
    output.write_text("")
    assert _last_line(output) == "no output"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what a process has taken")
def test_memory_is_refused_in_the_middle_of_an_input() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory_limited(1 << 20):
        assert len(bytearray(256 << 20)) == 256 << 20
        with pytest.raises(MemoryError):
            bytearray(2 << 30)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_an_input_for_which_the_memory_does_not_suffice_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def takes_all(**_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("slipstream.cli.entry._command", lambda: takes_all)
    with pytest.raises(AssertionError, match="the memory does not suffice"):
        check("csv", b"", tmp_path)
