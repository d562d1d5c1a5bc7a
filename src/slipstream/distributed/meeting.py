"""Where the processes of one start meet: at torch's TCP store, before they make their group.

torchrun may keep its store when it starts all processes anew, and nothing that it sets tells one start from another (a
restart count is each agent's own, and is not raised where machines come or go). So rank 0 makes a name for the start,
and the others take it only once rank 0 has seen them.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import NamedTuple

from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from slipstream.errors import ConfigError

_EVERY = 0.5
"""Seconds between two looks at the store."""
_WORD = 30.0
"""Seconds after which a rank says whom it waits for."""
_ANSWER = timedelta(seconds=10)
"""For the store's host to answer, once it takes connections."""
_IN_STORE = timedelta(minutes=5)
"""For what ranks that have met ask of the store: torch's default."""


class Met(NamedTuple):
    """All ranks are there."""

    store: Store
    """A client, or the store itself."""
    prefix: str
    """Of this start's names in the store."""
    restarted: bool
    """Whether there was a start of this run before; rank 0 alone knows."""


def meet(rank: int, world: int, host: str, port: int, *, hosts: bool, restarts: int = 0, patience: float) -> Met:
    """Waits for all ranks, in Python, where signals are answered.

    Args:
        rank: This one.
        world: W.
        host: Where the store is.
        port: Its port.
        hosts: Whether rank 0 is to make the store; else the launcher has.
        restarts: How often this rank's launcher has started it anew.
        patience: Seconds to wait: machines start at different times.

    Raises:
        ConfigError: Not all have come, or they differ in how many they are to be.
        DistError: The store cannot be made, or is gone.
    """
    wait = _Wait(rank, f"{host}:{port}", patience)
    hosts = hosts and rank == 0
    if not hosts:
        _reach(host, port, wait)
    store = TCPStore(host, port, is_master=hosts, timeout=_ANSWER, wait_for_workers=False)
    store.set_timeout(_IN_STORE)
    prefix = f"slipstream/{os.environ.get('TORCHELASTIC_RUN_ID', '')}"
    names = PrefixStore(prefix, store)
    own = json.dumps([secrets.token_hex(8), world, restarts])
    if rank:
        return Met(store, f"{prefix}/{_answer(names, rank, world, own, wait)}", False)
    before = names.add("starts", 1) > 1
    start = secrets.token_hex(8)
    try:
        answers = _call(names, start, world, wait)
    except ConfigError as error:
        names.set(f"{start}/heard", json.dumps([error.message, *_answers(names, start, world).values()]))
        time.sleep(2 * _EVERY)  # for the others to read it: the store may be this process's
        raise
    names.set(f"{start}/heard", json.dumps(["", *answers]))
    counts = [json.loads(answer)[2] for answer in (own, *answers)]
    return Met(store, f"{prefix}/{start}", before or max(counts) > 0)


class _Wait:
    """Waits in small pieces, and says for whom: once after a while, and in an error at the end."""

    def __init__(self, rank: int, where: str, patience: float) -> None:
        self.rank, self.where, self.patience = rank, where, patience
        self._began, self._said = time.monotonic(), False

    def __call__(self, missing: str, *, aloud: bool = True) -> None:
        """A piece; ``aloud``: whether it is this rank's to say."""
        waited = time.monotonic() - self._began
        if waited > self.patience:
            raise ConfigError(
                f"rank {self.rank} has waited {self.patience:,.0f} s at {self.where} for {missing}",
                remedy="see what they say, and that they are started and reach that place",
            )
        if aloud and not self._said and waited > _WORD:
            said = f"slipstream: rank {self.rank} waits at {self.where} for {missing}, {self.patience:,.0f} s at most"
            print(said, file=sys.stderr, flush=True)
            self._said = True
        time.sleep(_EVERY)


def _reach(host: str, port: int, wait: _Wait) -> None:
    """Returns once something takes connections there: torch's client waits where no signal is answered."""
    while True:
        try:
            socket.create_connection((host, port), timeout=_ANSWER.total_seconds()).close()
        except OSError as error:
            wait(f"rank 0, or the launcher, to take connections ({error.strerror or error})")
        else:
            return


def _call(names: Store, start: str, world: int, wait: _Wait) -> list[str]:
    """Rank 0: calls the others, and returns what each has answered."""
    names.set("call", start)
    while len(answers := _answers(names, start, world)) < world - 1:
        wait(_missing(answers, world))
    for rank, answer in answers.items():
        theirs = json.loads(answer)[1]
        if theirs != world:
            raise ConfigError(
                f"WORLD_SIZE is {world} on rank 0 and {theirs} on rank {rank}", remedy="start all ranks alike"
            )
    return list(answers.values())


def _answer(names: Store, rank: int, world: int, own: str, wait: _Wait) -> str:
    """Another rank: answers each call, and returns the one that has heard this very process."""
    while True:
        start = names.get("call").decode() if names.check(["call"]) else None
        missing = f"rank 0 of {world}"
        if start is not None:
            names.set(f"{start}/{rank}", own)
            if names.check([f"{start}/heard"]):  # of this process, or of those of a start before: wait for its rank 0
                problem, *heard = json.loads(names.get(f"{start}/heard"))
                if own in heard and problem:
                    error = ConfigError(problem)
                    error.said_elsewhere = True
                    raise error
                if own in heard:
                    return start
            else:
                missing = _missing(_answers(names, start, world), world)
        wait(missing, aloud=missing.startswith("rank 0 "))


def _answers(names: Store, start: str, world: int) -> dict[int, str]:
    """Of the ranks that have answered, in order."""
    there = [rank for rank in range(1, world) if names.check([f"{start}/{rank}"])]
    return {rank: names.get(f"{start}/{rank}").decode() for rank in there}


def _missing(answers: Mapping[int, str], world: int) -> str:
    """Those that have not answered; all have: rank 0 has not seen it."""
    missing = [rank for rank in range(1, world) if rank not in answers] or [0]
    return f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))} of {world}"
