"""Tasks for the tests of the campaign: processes that count, fail, die or wait."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.fuzz.campaign import Tally


def task(name: str, seconds: float, tally: Tally, kept: Path) -> None:
    """Does what its name says, after three inputs and so many seconds of made-up processor time."""
    kept.write_bytes(name.encode())
    tally.inputs, tally.seconds = 3, seconds
    match name:
        case "fails":
            raise ValueError("a reader's own\nin two lines")
        case "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "waits":
            time.sleep(600)
