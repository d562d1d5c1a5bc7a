"""Turns a watched run into its page, no more often than the machine can spare, for all who look at it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from slipstream.report.live.watched import Watched
from slipstream.report.run_page import run_body

SHARE = 0.05
"""Of one core's time that drawing may take from the training."""


class Feed:
    """The newest page of a run, with its number; drawn only while somebody waits for it.

    Args:
        watched: The run.
        interval: Seconds between two pages at least; more where drawing takes long.
    """

    def __init__(self, watched: Watched, interval: float = 2.0) -> None:
        self.watched, self.interval = watched, interval
        self.version = 0
        self.body = ""
        self.done = False
        """Whether the page is that of the finished training, or watching has ended."""
        self._changed = threading.Condition()
        self._waiting = 0
        self._next = 0.0
        self._stale = True

    def follow(self, poll: float = 0.25, say: Callable[[str], None] = print) -> None:
        """Watch until the training is over, and draw its last page.

        Args:
            poll: Seconds between two looks at the folder.
            say: Is told when no training is at work there.

        Raises:
            DataError: A file of the run cannot be read.
        """
        while True:
            self._stale = self.watched.look() or self._stale
            finished = self.watched.finished
            if self._stale and (finished or (self._waiting and time.monotonic() >= self._next)):
                self._draw(finished)
            if finished:
                return
            if word := self.watched.deserted():
                say(word)
            time.sleep(poll)

    def _draw(self, finished: bool) -> None:
        began = time.monotonic()
        body = run_body(self.watched.run())
        now = time.monotonic()
        self._stale, self._next = False, now + max(self.interval, (now - began) / SHARE)
        with self._changed:
            self.version, self.body, self.done = self.version + 1, body, finished
            self._changed.notify_all()

    def end(self) -> None:
        """Tell all who wait that nothing more comes."""
        with self._changed:
            self.done = True
            self._changed.notify_all()

    def wait(self, version: int, timeout: float) -> tuple[int, str, bool]:
        """The newest page, once it is another than ``version`` or nothing more comes.

        Args:
            version: The number of the page that is known; 0 for none.
            timeout: Seconds after which it returns anyway.

        Returns:
            Number, HTML and whether it is the last.
        """
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: self.version > version or self.done, timeout)
            finally:
                self._waiting -= 1
            return self.version, self.body, self.done
