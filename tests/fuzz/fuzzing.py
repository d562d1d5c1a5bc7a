"""One target fuzzed in a process of its own, for so much processor time."""

from __future__ import annotations

import re
import resource
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from pathlib import Path
from types import FrameType

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.fuzz.campaign import Tally
from tests.fuzz.targets import check, inputs

PER_INPUT = 60
"""Seconds of processor time that one input may take."""
GROWTH = 4 << 20
"""KiB by which the memory may grow, looked at after each input."""
RESERVED = 2 << 20
"""KiB that allocators may reserve and not use: beyond both the system refuses an input in the middle of it."""


class Hang(AssertionError):
    """An input that took too long."""


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise Hang(f"an input took more than {PER_INPUT} s of processor time")


@contextmanager
def memory_limited(growth: int) -> Iterator[None]:
    """Refuses memory beyond so many KiB above now, while the block runs; where there is no /proc, none."""
    status, limits = Path("/proc/self/status"), resource.getrlimit(resource.RLIMIT_DATA)
    taken = re.search(r"VmData:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if taken is not None:
        resource.setrlimit(resource.RLIMIT_DATA, ((int(taken[1]) + growth) << 10, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


def fuzz(name: str, seconds: float, tally: Tally, kept: Path) -> None:
    """Tries damaged inputs for so many seconds of this process's processor time; a finding is whatever it raises.

    Args:
        name: The target.
        seconds: Processor time, of all threads, from now on.
        tally: Counts the inputs and the seconds.
        kept: The input of the moment, for one that kills the process; after a finding the input that was made small.
    """
    parent = parent_process()
    began, found = time.process_time(), False
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGPROF, _stop)
    warnings.simplefilter("error", RuntimeWarning)

    def is_over() -> bool:  # also where nobody waits for the answer any more
        tally.seconds = time.process_time() - began
        return tally.seconds >= seconds or (parent is not None and not parent.is_alive())

    @settings(
        max_examples=200,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[*HealthCheck],
    )
    @given(st.data())
    def examples(data: st.DataObject) -> None:
        nonlocal found
        content = data.draw(inputs(name))
        # Hypothesis shrinks what failed by trying it again: what is found is no longer a matter of time.
        if is_over() and not found:
            return
        kept.write_bytes(content)
        signal.setitimer(signal.ITIMER_PROF, PER_INPUT)
        try:
            with tempfile.TemporaryDirectory() as folder:
                check(name, content, Path(folder))
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert grown < GROWTH, f"the memory grew by {grown >> 10} MiB"
        except BaseException:
            found = True
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            tally.inputs += 1

    with memory_limited(GROWTH + RESERVED):
        while not is_over():
            examples()
