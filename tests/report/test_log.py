"""``metrics.jsonl`` is read as it grows, whatever is in it."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

from slipstream.errors import DataError
from slipstream.report import log as reading
from slipstream.report.log import LONGEST_LINE, Follower, RunLog, read_log

STEP = {"event": "step", "step": 1, "samples": 64, "loss": 0.5, "dense_lr": 0.1, "embedding_lr": 0.1, "seconds": 1.0}


def line(**changes: object) -> bytes:
    return json.dumps({**STEP, **changes}).encode() + b"\n"


def test_lines_are_read_once_and_a_last_one_waits_for_its_end(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    follower = Follower(file)
    assert not follower.read(), "nothing there yet"
    written = line() + line(step=2)
    file.write_bytes(written[:-7])
    assert follower.read() and len(follower.log.steps) == 1
    with file.open("ab") as stream:
        stream.write(written[-7:])
    assert follower.read() and [step.step for step in follower.log.steps] == [1, 2]
    assert not follower.read() and follower.log.unreadable == 0


@pytest.mark.parametrize("how", ["replaced", "cut"])
def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path, how: str) -> None:
    """``train --resume`` writes the lines before its checkpoint beside, and renames."""
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(line() + line(step=2))
    follower = Follower(file)
    follower.read()
    if how == "replaced":
        (tmp_path / "new").write_bytes(line(step=7) + line(step=8) + line(step=9))
        os.replace(tmp_path / "new", file)
    else:
        file.write_bytes(line(step=7))
    assert follower.read() and follower.log.steps[0].step == 7


@pytest.mark.parametrize(
    "bad",
    [
        b"{",
        b"[]",
        b"7",
        b"\xff\xfe",
        b"{}",
        b'{"event": 3}',
        b"[" * 100_000,
        line(loss="x").strip(),
        line(samples=-1).strip(),
        b'{"event": "step", "loss": NaN}',
        line(seconds=1e999).strip(),
        line(step=True).strip(),
        line(phase_seconds={"input": "x"}).strip(),
        b"9" * 10_000,
        b'{"event": "start", "total_samples": 1, "commit": "\\ud800"}',
    ],
    ids=range(15),
)
def test_what_cannot_be_read_is_passed_over_and_counted(bad: bytes) -> None:
    log = RunLog()
    for piece in (line(), bad, line(step=2)):
        log.add(piece)
    assert len(log.steps) == 2 and log.unreadable == 1


def test_a_line_without_end_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(line() + b"x" * (LONGEST_LINE + 1))
    follower = Follower(file)
    follower.read()
    assert len(follower.log.steps) == 1 and follower.log.unreadable == 1 and follower._rest == b""


def test_kinds_of_later_versions_say_nothing_and_older_lines_are_enough() -> None:
    log = RunLog()
    log.add(b'{"event": "unheard of", "samples": "x"}')
    log.add(line(unknown=3))
    assert log.unreadable == 0 and log.steps[0].inputs_seen == 0 and log.samples == 64 and log.seconds == 1.0


@pytest.mark.parametrize("count", [1, 8, 9, 10, 17, 18, 100, 1000])
def test_of_very_many_lines_some_are_kept_evenly_and_the_last(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(reading, "MOST_LINES", 8)
    log = RunLog()
    for step in range(count):
        log.add(line(step=step))
        assert log.steps[-1].step == step
    kept = [one.step for one in log.steps]
    apart = {second - first for first, second in pairwise(kept[:-1])}
    assert len(apart) <= 1 and kept[0] == 0 and min(count, 5) <= len(kept) <= 9
    assert kept == list(range(count)) or count > 8, "all of a log of usual length"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused(tmp_path: Path, make) -> None:
    make(tmp_path / "metrics.jsonl")
    with pytest.raises(DataError, match="not a regular file"):
        read_log(tmp_path / "metrics.jsonl")


def test_a_real_run_notes_everything(trained: Path) -> None:
    log = read_log(trained / "metrics.jsonl")
    assert log.start is not None and log.start.machine is not None and log.unreadable == 0
    last = log.steps[-1]
    assert last.samples == log.start.total_samples == last.inputs_seen == last.inputs_kept
    assert last.lookups == 2 * last.samples and 0 < last.skipped < last.lookups
    assert set(last.phase_seconds) == {"input", "policy", "forward", "backward", "update"}
    assert sum(last.phase_seconds.values()) <= last.seconds
    assert len(log.scores) == len(log.gates) == 10 and set(log.gates[-1].open) == {"head", "torso", "tail"}
    assert log.gates[-1].open["head"] < 1
