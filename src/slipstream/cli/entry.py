"""Where the command ``slipstream`` starts, before anything heavy is imported."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import MutableMapping

from slipstream.errors import Interrupted, SlipstreamError

SPIN_COUNT = "1000"
TERMINATED = 128 + 15
"""Exit status after SIGTERM, as a shell gives it."""
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1


def bound_spin(environment: MutableMapping[str, str]) -> None:
    """Have idle threads of GNU OpenMP spin briefly, unless the user has said how they shall wait.

    With libgomp's default an idle thread of torch's pool holds its core for milliseconds, and two trainings that share
    cores starve each other. libgomp reads the setting when it is loaded, so this must come before ``import torch``.

    Args:
        environment: The process's environment, changed in place.
    """
    if not environment.get("OMP_WAIT_POLICY"):
        environment.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors instead of giving it back to the system after every step.

    Else each step's outputs and gradients of some megabytes are mapped and zeroed anew by the system, which at 128
    elements a row can take longer than the lookups. It is a setting of the whole process, so the library leaves it
    alone; other C libraries have no ``mallopt`` and stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the greatest that it takes
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def main() -> None:
    """Run the command line; on bad input print one line on standard error, and exit with 2 (after SIGTERM with 143)."""
    bound_spin(os.environ)
    keep_freed_memory()
    # Accepted anywhere on the line, since one adds it to a command that has just failed.
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    from slipstream.cli.app import app

    try:
        app(args=arguments, prog_name="slipstream")
    except SlipstreamError as error:
        if len(arguments) + 1 < len(sys.argv):
            raise
        print(f"slipstream: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(TERMINATED if isinstance(error, Interrupted) else 2)
