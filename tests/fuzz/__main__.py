"""Fuzzing by the clock: ``python -m tests.fuzz MINUTES [TARGET…]``, so many minutes for each target.

Says for each target how many inputs were tried; ends at the first finding with the input that Hypothesis has made
small, and status 1. An input that takes a minute, or memory beyond 4 GiB above the start, is a finding too.
"""

from __future__ import annotations

import resource
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import FrameType

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.fuzz.targets import TARGETS, check, damaged

PER_INPUT = 60


class Hang(AssertionError):
    """An input that took too long."""


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise Hang(f"an input took more than {PER_INPUT} s")


def fuzz(name: str, seconds: float) -> int:
    """Tries damaged inputs for so long; returns how many."""
    end, tried, seed = time.monotonic() + seconds, 0, time.time_ns()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    phases = (Phase.generate, Phase.shrink)

    while time.monotonic() < end:
        seed += 1

        @settings(max_examples=200, deadline=None, database=None, phases=phases, suppress_health_check=[*HealthCheck])
        @given(st.data())
        def examples(data: st.DataObject) -> None:
            nonlocal tried
            content = data.draw(damaged(TARGETS[name][0]))
            if time.monotonic() > end:
                return
            tried += 1
            signal.alarm(PER_INPUT)
            try:
                with tempfile.TemporaryDirectory() as folder:
                    check(name, content, Path(folder))
            finally:
                signal.alarm(0)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert grown < 4 << 20, f"the memory grew by {grown >> 10} MiB"

        examples()
    return tried


def main() -> None:
    """Fuzzes the targets named on the command line, or all."""
    minutes, names = float(sys.argv[1]), sys.argv[2:] or list(TARGETS)
    signal.signal(signal.SIGALRM, _stop)
    warnings.simplefilter("error", RuntimeWarning)
    for name in names:
        began = time.monotonic()
        print(
            f"{name}: {fuzz(name, 60 * minutes):,} inputs in {time.monotonic() - began:.0f} s, no finding", flush=True
        )


main()
