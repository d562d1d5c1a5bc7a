"""How ranks meet: bad variables, ranks that never come, starts that share a store."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from slipstream.distributed import meeting
from slipstream.distributed.meeting import Met, meet
from slipstream.errors import ConfigError
from slipstream.training.ranks import Ranks

GOOD = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "LOCAL_RANK": "0"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RANK", "first"),
        ("RANK", "2"),
        ("RANK", "-1"),
        ("WORLD_SIZE", "two"),
        ("WORLD_SIZE", "0"),
        ("MASTER_PORT", "http"),
        ("MASTER_PORT", "70000"),
        ("LOCAL_RANK", "x"),
        ("TORCHELASTIC_RESTART_COUNT", "?"),
    ],
)
def test_variables_that_make_no_sense_are_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, text in {**GOOD, name: value}.items():
        monkeypatch.setenv(key, text)
    with pytest.raises(ConfigError, match=rf"{name} is '.*{value[1:]}' in the environment.*start it as torchrun"):
        Ranks()


def environment(rank: int, world: int, port: int, **others: str) -> dict[str, str]:
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_PORT": str(port)}
    return {**os.environ, "MASTER_ADDR": "127.0.0.1", "GOMP_SPINCOUNT": "1000", **own, **others}


def command(patience: float = 60.0) -> list[str]:
    """Enters and leaves, as the command line would."""
    lines = (
        "import sys",
        "from slipstream.errors import SlipstreamError",
        "from slipstream.training.ranks import Ranks",
        "try:",
        f"    with Ranks(patience={patience}): print('met', flush=True)",
        "except SlipstreamError as error: sys.exit(error.said_elsewhere and 3 or str(error))",
    )
    return [sys.executable, "-c", "\n".join(lines)]


def test_an_interface_that_is_not_there_is_an_error_in_one_line() -> None:
    env = environment(0, 1, free_port(), GLOO_SOCKET_IFNAME="nowhere0")
    done = subprocess.run(command(), env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "rank 0 cannot meet the others" in done.stderr and "GLOO_SOCKET_IFNAME names an interface" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_rank_that_never_comes_is_named_by_rank_0_alone() -> None:
    port = free_port()
    ranks = [
        subprocess.Popen(command(patience), env=environment(rank, 4, port), stderr=subprocess.PIPE, text=True)
        for rank, patience in ((0, 6.0), (1, 60.0))
    ]
    (_, first), (_, second) = (rank.communicate(timeout=100) for rank in ranks)
    assert f"rank 0 has waited 6 s at 127.0.0.1:{port} for ranks 2, 3 of 4; see what they say" in first
    assert [rank.returncode for rank in ranks] == [1, 3], second


@pytest.mark.parametrize("rank", [0, 1])
def test_who_waits_for_the_others_answers_sigterm(rank: int, tmp_path: Path) -> None:
    env = environment(rank, 2, free_port())
    # A word at once: so that the test knows that it waits.
    eager = [*command()[:2], f"import slipstream.distributed.meeting as m; m._WORD = -1.0\n{command()[2]}"]
    with subprocess.Popen(eager, env=env, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        said = waiting.stderr.readline()
        assert f"slipstream: rank {rank} waits at 127.0.0.1:" in said
        assert ("for rank 1 of 2" if rank == 0 else "for rank 0, or the launcher,") in said
        waiting.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert "asked to end (SIGTERM)" in waiting.communicate(timeout=60)[1]
        assert waiting.returncode == 1 and time.monotonic() - began < 20


@pytest.fixture
def port() -> int:
    return free_port()


def start(port: int, world: int, ranks: list[int], *, restarts: int = 0, patience: float = 60.0) -> list[Met]:
    """These ranks come, as threads; the store is the launcher's."""

    def come(rank: int) -> Met:
        own = restarts if rank else 0  # a machine that was there before, and a new one
        return meet(rank, world, "127.0.0.1", port, hosts=False, restarts=own, patience=patience)

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(come, ranks))


def test_starts_on_one_store_do_not_meet_each_other(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_EVERY", 0.02)
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    first = start(port, 3, [0, 1, 2])
    assert len({met.prefix for met in first}) == 1 and not first[0].restarted
    # The next start: others come long before rank 0, and find what the one before has left.
    early: list[Met] = []
    thread = threading.Thread(target=lambda: early.extend(start(port, 3, [1, 2])))
    thread.start()
    time.sleep(0.5)
    assert not early, "they have taken the start before for theirs"
    (late,) = start(port, 3, [0])
    thread.join(30)
    assert {met.prefix for met in early} == {late.prefix} != {first[0].prefix}
    assert late.restarted, "though no launcher has counted it"
    # One that rank 0 gave up is not the next one's either.
    with pytest.raises(ConfigError, match="for rank 2 of 3"):
        start(port, 3, [0, 1], patience=0.2)
    again = start(port, 3, [0, 1, 2])
    assert len({met.prefix for met in again}) == 1
    del store


def test_a_restart_that_another_launcher_has_counted_is_one(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_EVERY", 0.02)
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    assert start(port, 2, [0, 1], restarts=1)[0].restarted
    del store


def test_ranks_that_are_to_be_of_different_numbers_are_refused(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_EVERY", 0.02)
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(start, port, world, [rank]) for rank, world in ((0, 2), (1, 3))]
    for one in both:
        with pytest.raises(ConfigError, match="WORLD_SIZE is 2 on rank 0 and 3 on rank 1"):
            one.result()
    del store


def test_ranks_that_cannot_meet_leave_signals_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**GOOD, "MASTER_ADDR": "there"}.items():
        monkeypatch.setenv(name, value)

    def fail(self: Ranks) -> None:
        raise dist.DistNetworkError("no route")

    monkeypatch.setattr(Ranks, "_meet", fail)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ConfigError, match=r"rank 0 cannot meet the others at there:29500 \(no route\)"), Ranks():
        pass
    assert signal.getsignal(signal.SIGTERM) is before
