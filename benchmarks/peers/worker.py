"""A contestant's process, ``python -m benchmarks.peers.worker``: requests come on stdin, replies go to stdout.

Runs in the contestant's own interpreter. What libraries print goes to standard error. A contestant is whatever
``make(job)`` of its module gives: ``rows``, ``table_bytes()``, ``fit(request)`` and, where it trains step by step,
``steps(count)``; the module has ``versions()``.
"""

from __future__ import annotations

import os
import resource
import sys
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from benchmarks.peers.protocol import (
    Close,
    Closed,
    Fit,
    Fitted,
    Job,
    Message,
    Missing,
    Open,
    Opened,
    ProtocolError,
    Spent,
    Steps,
    decode,
    encode,
)
from benchmarks.peers.resident import resident


class Contestant(Protocol):
    """A system under training."""

    rows: int
    """Rows of all tables."""

    def table_bytes(self) -> int:
        """Bytes of tables and their optimizer state; 0 where it cannot say."""
        ...

    def fit(self, request: Fit) -> Fitted:
        """Trains as asked."""
        ...


@runtime_checkable
class Stepwise(Protocol):
    """One that also trains step by step."""

    def steps(self, count: int) -> Spent:
        """Trains so many steps."""
        ...


class _Session:
    """One job, from its opening to its end."""

    def __init__(self) -> None:
        self.contestant: Contestant | None = None

    def answer(self, request: Message) -> Message:
        """The reply to a request."""
        if isinstance(request, Open):
            return self._open(request.job)
        if isinstance(request, Close):
            tables = 0 if self.contestant is None else self.contestant.table_bytes()
            return Closed(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, tables)
        if isinstance(self.contestant, Stepwise) and isinstance(request, Steps):
            return self.contestant.steps(request.count)
        if self.contestant is not None and isinstance(request, Fit):
            return self.contestant.fit(request)
        raise ProtocolError(
            f"{type(request).__name__} is no request, came before Open, or is none of this contestant's"
        )

    def _open(self, job: Job) -> Message:
        try:
            module: Any = import_module(job.module)
        except ImportError as error:
            return Missing(str(error))
        before = resident()
        contestant: Contestant = module.make(job)
        self.contestant = contestant
        return Opened(module.versions(), before.total, before.anonymous, contestant.rows)


def main() -> None:
    """Answers until nothing more is asked."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    session = _Session()
    for line in sys.stdin:
        request = decode(line)
        replies.write(encode(session.answer(request)))
        replies.flush()
        if isinstance(request, Close):
            return


if __name__ == "__main__":
    main()
