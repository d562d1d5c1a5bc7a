"""Signals that ask a training to end: it is saved first."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from slipstream.errors import Interrupted

SAVED = "saved; go on with --resume {}"
NOT_SAVED = "nothing of it was saved"
_SAID = {
    signal.SIGTERM: "asked to end (SIGTERM)",
    signal.SIGHUP: "its terminal was closed (SIGHUP)",
    signal.SIGINT: "interrupted (Ctrl-C)",
}
_AGAIN = 1.0
"""Seconds after which another signal is meant: what started the training may pass on the one that it had already."""


class Termination:
    """Catches SIGTERM, SIGHUP and SIGINT (Ctrl-C) while the block runs.

    They raise what :meth:`ended` gives at once, except within :meth:`deferred`, where ``requested`` says that one came;
    a second Ctrl-C does not wait there. SIGHUP and SIGINT stay as they are where they do not do what they do by
    themselves: under ``nohup``, in the background of a script, where an application answers them. On other threads
    than the main one, where Python takes no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.remedy = NOT_SAVED
        """What is said when it ends the training at once."""
        self._number: int | None = None
        self._came = 0.0
        self._deferred = False
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether the training is asked to end."""
        return self._number is not None

    def ended(self, remedy: str) -> BaseException:
        """What to raise: KeyboardInterrupt after Ctrl-C, which no ``except Exception`` around a training takes."""
        number = signal.SIGTERM if self._number is None else self._number  # None: another rank was asked
        if number == signal.SIGINT:
            return KeyboardInterrupt(f"{_SAID[signal.SIGINT]}; {remedy}")
        return Interrupted(_SAID[signal.Signals(number)], remedy=remedy, signal=number)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """The block asks for ``requested`` itself; an error that leaves it is not replaced by a signal any more."""
        self._deferred = True
        yield
        self._deferred = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._number is None:
            self._number, self._came = number, now
        elif now - self._came < _AGAIN:
            return
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._deferred:
            raise self.ended(self.remedy)

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            for number in _SAID:
                if _is_free(number):
                    self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


def _is_free(number: int) -> bool:
    """Whether a signal may be caught: SIGTERM always, but from another language's handler, which could not be put back.

    Others where they do what they do by themselves, or what a block around this one has them do.
    """
    taken = signal.getsignal(number)
    if number == signal.SIGTERM:
        return taken is not None
    return taken in (signal.SIG_DFL, signal.default_int_handler) or isinstance(
        getattr(taken, "__self__", None), Termination
    )
