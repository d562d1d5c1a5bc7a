"""A number that changes with the sources of the kernels.

Numba stamps its cache with the file that defines a function alone; workers take this number into their closures, which
are part of the cache's key, so that a change in a file they inline is not missed.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

_INLINED = (
    "hashing.py",
    "reference_sampling.py",
    "intrinsics.py",
    "row_ops.py",
    "signal.py",
    "signal_ops.py",
    "types.py",
    "cpu_lookups.py",
    "cpu_pool.py",
    "cpu_sampling.py",
    "cpu_update.py",
)


@cache
def digest() -> int:
    """63 bits of a hash over the files that end up in workers."""
    here = Path(__file__).parent
    sources = b"".join((here / name).read_bytes() for name in _INLINED)
    return int.from_bytes(hashlib.sha256(sources).digest()[:8], "big") >> 1
