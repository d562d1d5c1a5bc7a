"""What a process holds in memory: its own (anonymous) pages, and those of files, which others share. Linux."""

from __future__ import annotations

from threading import Event, Thread
from typing import NamedTuple

EVERY_SECONDS = 0.004
"""Between two looks at a process: short against a step."""


class Resident(NamedTuple):
    """Bytes in memory now."""

    anonymous: int
    """Heap, tables, state: nobody else's, and only swap could take them."""
    file: int
    """Of libraries and mapped data (and shared memory): clean pages are shared with whoever maps the same file, and the
    system takes them back when it needs them."""

    @property
    def total(self) -> int:
        """RSS."""
        return self.anonymous + self.file


def resident(process: int | str = "self") -> Resident:
    """What a process holds.

    Args:
        process: Its number.

    Raises:
        OSError: It has ended.
    """
    with open(f"/proc/{process}/status", encoding="ascii", errors="replace") as file:
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file if line.startswith("Rss")}
    return Resident(sizes.get("RssAnon", 0), sizes.get("RssFile", 0) + sizes.get("RssShmem", 0))


class Watch:
    """The most that a process holds of each kind while the block runs, seen from outside.

    Args:
        process: Its number.

    Attributes:
        most: By kind; they need not have been at the same time.
    """

    def __init__(self, process: int) -> None:
        self.process, self.most = process, Resident(0, 0)
        self._over = Event()
        self._thread = Thread(target=self._look, name="resident", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            try:
                now = resident(self.process)
            except OSError:
                return
            self.most = Resident(max(self.most.anonymous, now.anonymous), max(self.most.file, now.file))
            if self._over.wait(EVERY_SECONDS):
                return
