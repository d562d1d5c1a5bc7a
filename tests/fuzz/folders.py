"""Folders that last as long as the process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path


def lasting_folder() -> Path:
    """A new temporary folder, removed when the process ends by itself."""
    folder = Path(tempfile.mkdtemp(prefix="slipstream-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
