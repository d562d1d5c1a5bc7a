"""The link between two network namespaces, and what the benchmark of ranks makes of its measurements."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from slipstream.bench import ranks, ranks_link
from slipstream.errors import ConfigError

SERVER = """
import socket, sys
listener = socket.create_server((sys.argv[1], 5000))
print("ready", flush=True)
peer, _ = listener.accept()
content = b""
while len(content) < 300_000:
    content += peer.recv(1 << 20)
peer.sendall(b"!")
"""
CLIENT = """
import socket, sys, time
began = time.monotonic()
peer = socket.create_connection((sys.argv[1], 5000))
print(time.monotonic() - began)
peer.sendall(bytes(300_000))
assert peer.recv(1) == b"!"
print(open(f"/sys/class/net/{sys.argv[2]}/statistics/tx_bytes").read())
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/net/tun", os.W_OK) or shutil.which("ip") is None,
    reason="network namespaces need root, /dev/net/tun and iproute2",
)
def test_the_link_delays_counts_and_leaves_nothing() -> None:
    with ranks_link.Link(1e9, 0.04) as link:
        address = link.addresses[1]
        with subprocess.Popen(
            link.command(1, [sys.executable, "-c", SERVER, address]), stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"
            client = link.command(0, [sys.executable, "-c", CLIENT, address, ranks_link.DEVICE])
            done = subprocess.run(client, capture_output=True, text=True, check=True, timeout=60)
        connected, sent = done.stdout.split()
        assert float(connected) >= 0.04
        assert 300_000 < int(sent) < 400_000
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not any(name in names for name in link.namespaces)


def test_without_root_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks_link.os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match=r"need root and /dev/net/tun; run the benchmark as root"):
        ranks_link.Link(1e9, 0.02).__enter__()


def test_figures_are_of_both_ranks_and_of_batches_that_passed() -> None:
    turn = {"bytes": 600, "steps": 2, "kept": 0.5, "seconds": 4.0, "loss": 0.3, "same decisions": True}
    row = ranks._row("half", [turn], [{**turn, "bytes": 400}], {"batches": 4})
    assert (row["bytes a batch of data"], row["bytes a step"]) == (250, 500)
    assert (row["seconds a batch of data"], row["seconds a step"]) == (1.0, 2.0)


class Here:
    """No link: ranks that are started as they are, and do something else."""

    addresses = ("unused", "unused")

    def __init__(self, *programs: str) -> None:
        self.programs = programs

    def command(self, side: int, arguments: list[str]) -> list[str]:
        return [sys.executable, "-c", self.programs[side], *arguments[-2:]]


def play(tmp_path: Path, *programs: str) -> list:
    return ranks._play(cast("ranks_link.Link", Here(*programs)), {}, tmp_path)


WAITS = "import time; time.sleep(600)"
WRITES = "import sys; open(sys.argv[2], 'w').write('{}')"


def test_a_rank_that_fails_is_named_and_the_other_is_ended(tmp_path: Path) -> None:
    assert play(tmp_path, WRITES, WRITES) == [{}, {}]
    with pytest.raises(ConfigError, match=r"^rank 1 ended with status 3 \(out of paper\)"):
        play(tmp_path, WAITS, "import sys; print('out of paper', file=sys.stderr); sys.exit(3)")


def test_no_rank_outlives_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen] = []
    real = ranks._start
    monkeypatch.setattr(ranks, "_start", lambda *given: started.append(real(*given)) or started[-1])

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ranks.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path, WAITS, WAITS)
    assert [process.returncode for process in started] == [-9, -9]


def test_the_worker_is_where_it_is_looked_for() -> None:
    assert (Path(ranks.__file__).parent / "ranks_worker.py").is_file()
