"""A contestant's process as the driver sees it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from benchmarks.peers.protocol import Close, Closed, Job, Message, Missing, Open, Opened, ProtocolError, decode, encode

from slipstream.bench.answer import next_line
from slipstream.errors import SlipstreamError

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 900.0
"""Longest that a request may take."""
Reply = TypeVar("Reply")
_ERROR = re.compile(r"[A-Za-z_.]*(Error|Exception)\b")
"""Of a traceback, the line that says what was wrong."""


class NotThere(SlipstreamError):
    """A peer's environment or one of its packages is not installed."""


class PeerFailed(SlipstreamError, RuntimeError):
    """A contestant's process ended without its reply."""


def interpreter(peer: str | None, venvs: Path) -> Path:
    """The Python that has a peer's packages; ours for contestants of our own environment.

    Raises:
        NotThere: There is none.
    """
    if peer is None:
        return Path(sys.executable)
    python = venvs / peer / "bin" / "python"
    if not python.exists():
        raise NotThere(f"{peer} is not installed", remedy=f'make bench-peers PEERS="{peer}"')
    return python


class Worker:
    """A running process.

    Args:
        python: Its interpreter.
        name: Of the contestant, for errors.
        log: File for what it prints.
        threads: Threads it computes with.
    """

    def __init__(self, python: Path, name: str, log: Path, threads: int) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "OMP_"))}
        environment |= {
            # The same for all: peers beside each other do not spin on each other's cores.
            "GOMP_SPINCOUNT": environment.get("GOMP_SPINCOUNT", "1000"),
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]) if _ours(python) else str(ROOT),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        self.name, self.log = name, log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [str(python), "-m", "benchmarks.peers.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=environment,
            )

    def send(self, request: Message) -> None:
        """Asks, without waiting."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(encode(request))
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failed() from error

    def receive(self, kind: type[Reply]) -> Reply:
        """The reply.

        Raises:
            NotThere: A package is missing.
            PeerFailed: The process ended, took too long, or said something else.
        """
        try:
            line = next_line(self.process, LIMIT_SECONDS)
        except TimeoutError as error:
            raise PeerFailed(f"{self.name} {error}") from error
        if not line:
            raise self._failed()
        try:
            reply = decode(line)
        except ProtocolError as error:
            raise PeerFailed(f"{self.name}: {error}") from error
        if isinstance(reply, Missing):
            raise NotThere(f"{self.name} is not installed: {reply.reason}", remedy="make bench-peers")
        if not isinstance(reply, kind):
            raise PeerFailed(f"{self.name}: expected {kind.__name__}, got {type(reply).__name__}")
        return reply

    def ask(self, request: Message, kind: type[Reply]) -> Reply:
        """Asks, and waits for the reply."""
        self.send(request)
        return self.receive(kind)

    def close(self) -> Closed:
        """Ends it in order; what it used."""
        closed = self.ask(Close(), Closed)
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()  # all that was asked of it is said
        return closed

    def kill(self) -> None:
        """Ends it, however it stands."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass  # what was not yet sent to a process that is gone

    def _failed(self) -> PeerFailed:
        self.process.wait()
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = [line for line in lines if _ERROR.match(line)] or lines or [""]
        return PeerFailed(f"{self.name} ended with status {self.process.returncode}: {said[-1][:300]}")


def _ours(python: Path) -> bool:
    return python == Path(sys.executable)


@contextmanager
def starting(python: Path, name: str, job: Job) -> Iterator[tuple[Worker, Path]]:
    """A contestant that was told to get ready, and a folder for its files; both are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="slipstream-peers-") as folder:
        worker = Worker(python, name, Path(folder) / "log.txt", job.threads)
        try:
            worker.send(Open(job))
            yield worker, Path(folder)
        finally:
            worker.kill()


@contextmanager
def opened(python: Path, name: str, job: Job) -> Iterator[tuple[Worker, Opened, Path]]:
    """A contestant that is ready, and a folder for its files."""
    with starting(python, name, job) as (worker, folder):
        yield worker, worker.receive(Opened), folder
