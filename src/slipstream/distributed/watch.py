"""Ranks watch over each other: when one is gone or hangs, the others stop and say which.

A collective tells at best that a connection was closed, and a rank that hangs keeps the others waiting for as long as
the process group's timeout. So every rank has a thread that gives signs of life at the meeting point (torch's TCP
store, which torchrun keeps) and looks after the next rank's.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from slipstream.errors import Interrupted, SlipstreamError

_EVERY = 0.5
"""Seconds between two signs of life."""
_ROLL_CALL = 5.0
"""Seconds that ranks have to answer when something has failed."""
_LEAVE = 10.0
"""Seconds that the main thread has to end by itself once a rank is lost."""
STATUS = 2
"""Exit status of a process that stops because another is lost."""
_number = itertools.count()
"""Of the watches of this process, so that each has keys of its own at the meeting point."""


class RankLost(SlipstreamError):
    """Another process of the training is gone, hangs, or has stopped with an error."""


class Watch:
    """Looks after the other ranks while the block runs.

    A rank of which no sign of life came for ``silence`` seconds is lost: a process that was stopped, or a machine that
    cannot be reached. The others end within some seconds: where their main thread waits in a collective, by the thread
    itself, which prints the one line and leaves with status 2. An error of the network within the block is turned into
    :class:`RankLost`, after a roll call of a few seconds that tells which rank is gone. An error of this rank's own is
    told to the others. A meeting point that does not answer for ``silence`` seconds (its host was stopped, or switched
    off) ends them too.

    Args:
        rank: This one.
        world: W.
        silence: Seconds.
        host: Where the meeting point is; None: ``MASTER_ADDR``, as torchrun sets it.
        port: Its port; None: ``MASTER_PORT``.
        again: What a user can do once a rank is lost.
        prefix: Of names at the meeting point that only this start of the processes uses, and all of them; None: by
            torchrun's count of restarts.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        *,
        silence: float = 30.0,
        host: str | None = None,
        port: int | None = None,
        again: str = "look for its own message, then start all ranks again",
        prefix: str | None = None,
    ) -> None:
        self.rank, self.world, self.silence, self.again = rank, world, silence, again
        host, port = host or os.environ["MASTER_ADDR"], port or int(os.environ["MASTER_PORT"])
        start = prefix or f"slipstream/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        names = f"{start}/watch/{next(_number)}"

        def connected() -> Store:
            client = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=10), wait_for_workers=False)
            return PrefixStore(names, client)

        # One each: a client serves one thread at a time.
        self._mine, self._thread_s = connected(), connected()
        self._done, self._over = threading.Event(), threading.Event()
        self._rounds = 0
        self._thread = threading.Thread(target=self._look, name="slipstream-watch", daemon=True)
        self._guard = threading.Thread(target=self._look_after_the_store, name="slipstream-guard", daemon=True)

    def __enter__(self) -> Watch:
        self._guard.start()
        try:
            self._mine.add(f"beat/{self.rank}", 1)
            self._thread.start()
        except BaseException:
            self._over.set()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Asked to end while another error was on its way out: that one counts.
            cause = error.__context__ if isinstance(error, Interrupted) and error.__context__ else error
            if error is None:
                self._finish()
            elif cause is not None and of_network(cause):
                raise self.lost(cause) from error
            elif isinstance(error, Exception):
                self._tell(error)
        except dist.DistError as gone:
            if error is not None and not of_network(error):
                return  # its own error says more
            raise RankLost(
                f"rank {self.rank} cannot reach the meeting point: rank 0, or the machine of the launcher, is gone",
                remedy=self.again,
            ) from gone
        finally:
            self._done.set()
            self._over.set()

    def _finish(self) -> None:
        """Waits for the others. Rank 0 leaves last: the meeting point may be its own."""
        self._mine.add("finished", 1)
        self._await(lambda: self._mine.add("finished", 0) >= self.world, self.silence)
        self._done.set()
        self._thread.join()
        if self.rank:
            self._mine.add("left", 1)
        else:
            self._await(lambda: self._mine.add("left", 0) >= self.world - 1, self.silence)

    def lost(self, error: BaseException) -> RankLost:
        """Holds a roll call, and says who is missing.

        Args:
            error: What failed here.
        """
        self._mine.set("roll call", str(self.rank))
        self._mine.set(f"here/{self.rank}", "")
        others = [rank for rank in range(self.world) if rank != self.rank]
        self._await(lambda: self._mine.check(["verdict"]) or self._missing(others) == [], _ROLL_CALL)
        if not self._mine.check(["verdict"]):
            self._mine.set("verdict", self._verdict(self._missing(others), error))
        return RankLost(self._mine.get("verdict").decode(), remedy=self.again)

    def _missing(self, others: list[int]) -> list[int]:
        return [rank for rank in others if not self._mine.check([f"here/{rank}"])]

    def _verdict(self, missing: list[int], error: BaseException) -> str:
        for rank in range(self.world):
            if self._mine.check([f"error/{rank}"]):
                return f"rank {rank} stopped with an error: {self._mine.get(f'error/{rank}').decode()}"
        if missing:
            names = ", ".join(map(str, missing))
            return f"rank{'s' * (len(missing) > 1)} {names} of {self.world} {'are' if len(missing) > 1 else 'is'} gone"
        return f"the ranks lost their connection though all are alive ({str(error).splitlines()[0]})"

    def _tell(self, error: Exception) -> None:
        """Leaves the error for the others. One that all ranks run into is printed by rank 0 alone."""
        said = str(error) if isinstance(error, SlipstreamError) else _first_line(error)
        self._mine.set(f"error/{self.rank}", said)
        if not self.rank:
            time.sleep(0.0 if self.world == 1 else 1.0)  # the meeting point may be this process's
        elif isinstance(error, SlipstreamError) and self._await(lambda: self._mine.check(["error/0"]), 2.0):
            error.said_elsewhere = self._mine.get("error/0").decode() == said

    @staticmethod
    def _await(condition: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not (found := condition()) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def _look(self) -> None:
        """The thread: signs of life, the neighbour's, and answers to roll calls.

        Silence is counted in rounds, not taken from a clock: where all processes were stopped a while, none is lost.
        """
        store, next_one = self._thread_s, (self.rank + 1) % self.world
        last, silent, answered = -1, 0, False
        try:
            while not self._done.wait(_EVERY):
                self._rounds += 1
                store.add(f"beat/{self.rank}", 1)
                beats = store.add(f"beat/{next_one}", 0)
                last, silent = beats, silent + 1 if beats == last else 0
                if silent * _EVERY > self.silence and not store.add("finished", 0):
                    said = f"rank {next_one} of {self.world} gave no sign of life for {self.silence:.0f} s"
                    store.set("verdict", said)
                if not answered and store.check(["roll call"]):
                    store.set(f"here/{self.rank}", "")
                    answered = True
                if store.check(["verdict"]):
                    self._leave(store.get("verdict").decode(), self._done)
        except dist.DistError:
            gone = "the meeting point cannot be reached: rank 0, or the machine of the launcher, is gone"
            self._leave(gone, self._done)

    def _look_after_the_store(self) -> None:
        """Another thread, which asks nothing of the store: where its host was stopped, who asks waits for ever."""
        before, silent = self._rounds, 0
        while not self._over.wait(_EVERY):
            before, silent = self._rounds, silent + 1 if self._rounds == before else 0
            if silent * _EVERY > self.silence:
                said = f"the meeting point has not answered for {self.silence:.0f} s: rank 0, or the launcher, hangs"
                self._leave(said, self._over)

    def _leave(self, verdict: str, ended: threading.Event) -> None:
        """Ends the process, unless the main thread does so in time."""
        if ended.wait(_LEAVE):
            return
        print(f"slipstream: {verdict}; {self.again}", file=sys.stderr, flush=True)
        os._exit(STATUS)


def of_network(error: BaseException) -> bool:
    """Whether a collective failed, rather than something of this rank's own."""
    return isinstance(error, dist.DistError) or (
        type(error) is RuntimeError and any(word in str(error) for word in ("gloo", "Gloo", "NCCL", "c10d"))
    )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'nothing more is said')}"
