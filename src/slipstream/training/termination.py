"""SIGTERM: a training that is asked to end is saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from slipstream.errors import Interrupted

ASKED_TO_END = "asked to end (SIGTERM)"
SAVED = "saved; go on with --resume {}"
NOT_SAVED = "nothing of it was saved"


class Termination:
    """Catches SIGTERM while the block runs.

    It raises :class:`Interrupted` at once, except within :meth:`deferred`, where ``requested`` says that it came. On
    other threads than the main one, where Python takes no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self.remedy = NOT_SAVED
        """What is said when it ends the training at once."""
        self._deferred = False
        self._before: Any = None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """The block asks for ``requested`` itself; an error that leaves it is not replaced by a signal any more."""
        self._deferred = True
        yield
        self._deferred = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            raise Interrupted(ASKED_TO_END, remedy=self.remedy)

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
