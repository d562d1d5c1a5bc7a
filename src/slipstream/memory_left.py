"""How much memory a process may still take: to refuse in words what the system would refuse in the middle."""

from __future__ import annotations

import re
from pathlib import Path

from slipstream.errors import ConfigError


def memory_left() -> int | None:
    """Bytes that the machine has left, its container and this process's own limit (``ulimit -d``); None: not known."""
    meminfo, status = Path("/proc/meminfo"), Path("/proc/self/status")
    if not meminfo.exists() or not status.exists():
        return None
    import resource

    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="ascii"))
    taken = re.search(r"VmData:\s+(\d+) kB", status.read_text(encoding="ascii", errors="replace"))
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    left = [int(found[1]) << 10] if found else []
    if taken and limit != resource.RLIM_INFINITY:
        left.append(limit - (int(taken[1]) << 10))
    most, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if most.exists() and used.exists() and (text := most.read_text(encoding="ascii").strip()) != "max":
        left.append(int(text) - int(used.read_text(encoding="ascii")))
    return min(left, default=None)


def check_memory_left(needed: int, what: str, *, remedy: str) -> None:
    """Refuses what would not fit.

    Args:
        needed: Bytes.
        what: That needs them, for the error.
        remedy: For the error.

    Raises:
        ConfigError: They are more than there are.
    """
    left = memory_left()
    if left is not None and needed > left:
        wanted, there = f"{needed / 1e9:,.1f} GB", f"{left / 1e9:,.1f} GB"
        raise ConfigError(f"{what} needs {wanted} of memory, {there} are left", remedy=remedy)
