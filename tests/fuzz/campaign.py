"""Several targets, each in a process of its own, some at a time, watched from outside.

Time is processor time: on a machine that others use, too, a minute on the clock says nothing. What a target's process
cannot say by itself, that it was killed or that nothing moves any more, is noticed here.
"""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing as mp
import os
import re
import signal
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

QUIET = 30 * 60.0
"""Seconds on the clock without a finished input after which nothing moves; those of a stopped process do not count."""
TICK = 10.0
"""Seconds between two looks."""
_RAISED = re.compile(r"^([ |]*)Traceback \(most recent call last\):\n(?:\1  .*\n)*\1(\S.*)$", re.MULTILINE)
"""Below the indented lines of a traceback, which may be one of a group's: the exception."""


class Tally(ctypes.Structure):
    """What a target's process has done so far; shared with the one that watches it."""

    _fields_ = (("inputs", ctypes.c_int64), ("seconds", ctypes.c_double))
    inputs: int
    seconds: float


Task = Callable[[str, float, Tally, Path], None]
"""Fuzzes the target of this name for so many seconds, counts, and keeps the input of the moment in a file."""


@dataclass(frozen=True)
class Outcome:
    """How far a target has come."""

    name: str
    inputs: int
    seconds: float
    """Processor time."""
    ended: bool = True
    """False while it is going on."""
    finding: str | None = None
    """In one line, where there is one."""


def is_stopped(pid: int | None) -> bool:
    """Whether a process was stopped (SIGSTOP); False where there is no /proc that says so."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return fields.rpartition(")")[2].split()[0] in ("T", "t")


@dataclass
class _Running:
    name: str
    process: SpawnProcess
    tally: Tally
    output: Path
    quiet: float = 0.0
    seen: int = -1

    def is_quiet(self, passed: float, quiet: float) -> bool:
        """Whether no input was finished for so long, ``passed`` after the last look."""
        if self.seen != self.tally.inputs:
            self.seen, self.quiet = self.tally.inputs, 0.0
        elif not is_stopped(self.process.pid):
            self.quiet += passed
        return self.quiet >= quiet

    def outcome(self, *, finding: str | None = None, ended: bool = False) -> Outcome:
        return Outcome(self.name, self.tally.inputs, self.tally.seconds, ended, finding)


def campaign(
    work: Sequence[tuple[str, float]], task: Task, *, jobs: int, folder: Path, quiet: float = QUIET, tick: float = TICK
) -> Generator[Outcome]:
    """Runs the task on every target, so many at a time.

    Args:
        work: Names of targets, each with its seconds of processor time.
        task: A function of a module: the processes begin anew.
        jobs: Processes at a time.
        folder: For the last input and the output of each target; those of a target without a finding are removed.
        quiet: Seconds on the clock without a finished input that are a finding.
        tick: Seconds between two looks.

    Yields:
        How far each running target is, at every look, and once for each that has ended. Closing it ends the processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting, running = list(work), list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(*waiting.pop(0), task, folder))
            before = time.monotonic()
            connection.wait([one.process.sentinel for one in running], tick)
            for one in list(running):
                ended = not one.process.is_alive()
                # No longer than two looks: this process may have been stopped, too.
                passed = min(time.monotonic() - before, 2 * tick)
                finding = _how_it_ended(one) if ended else None
                if not ended and one.is_quiet(passed, quiet):
                    one.process.kill()
                    one.process.join()
                    ended, finding = True, f"no input was finished in {quiet / 60:g} minutes"
                if ended:
                    running.remove(one)
                    if finding is None:
                        one.output.unlink()
                        one.output.with_suffix(".input").unlink(missing_ok=True)
                yield one.outcome(finding=finding, ended=ended)
    finally:
        for one in running:
            one.process.kill()
            one.process.join()


def _start(name: str, seconds: float, task: Task, folder: Path) -> _Running:
    context = mp.get_context("spawn")
    tally, output = context.Value(Tally, lock=False), folder / f"{name}.txt"
    kept = output.with_suffix(".input")
    process = context.Process(target=_child, args=(task, name, seconds, tally, kept, output), daemon=True)
    process.start()
    return _Running(name, process, tally, output)


def _child(task: Task, name: str, seconds: float, tally: Tally, kept: Path, output: Path) -> None:
    """In the target's process: what it says, its traceback with it, goes to a file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal: the parent answers it
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    faulthandler.enable()
    task(name, seconds, tally, kept)


def _how_it_ended(one: _Running) -> str | None:
    """What is wrong with a process that has ended, if anything."""
    code = one.process.exitcode or 0
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"{_last_line(one.output)} (status {code})" if code else None


def _last_line(output: Path) -> str:
    """The exception of the last traceback, whatever its name; Hypothesis's own notes stand below it."""
    text = output.read_text(encoding="utf-8", errors="replace")
    said = [line for line in text.splitlines() if line.strip()] or ["no output"]
    raised = [line for _, line in _RAISED.findall(text)]
    return (raised or said)[-1][:300]
