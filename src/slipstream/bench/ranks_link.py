"""Two network namespaces and a link of known speed and delay between them.

``tc netem`` delays packets only in kernels that were built with it, which many small machines' are not. So each
namespace has a TUN device, and what one sends is handed to the other here, in user space: at the link's speed, after
its delay. Needs root and ``/dev/net/tun``.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import threading
import time
from collections import deque
from types import TracebackType

from slipstream.errors import ConfigError

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
DEVICE = "slip0"
"""Name of the device within each namespace."""
MTU = 9000
"""Largest packet, bytes."""


class Link:
    """The link while the block runs.

    Attributes:
        namespaces: Names of the two.
        addresses: Their IPv4 addresses.

    Args:
        rate: Bits a second, each way.
        round_trip: Seconds there and back.

    Raises:
        ConfigError: This is not root, or there are no namespaces or TUN devices.
    """

    def __init__(self, rate: float, round_trip: float) -> None:
        self.rate, self.delay = rate, round_trip / 2
        number = os.getpid()
        self.namespaces = (f"slip{number}a", f"slip{number}b")
        self.addresses = ("10.90.77.1", "10.90.77.2")
        self._made: list[str] = []
        self._ends: list[int] = []
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Link:
        if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
            raise ConfigError(
                "two network namespaces with a link between them need root and /dev/net/tun",
                remedy="run the benchmark as root, in a container with --cap-add NET_ADMIN --device /dev/net/tun",
            )
        try:
            for namespace, address in zip(self.namespaces, self.addresses, strict=True):
                self._make(namespace, address)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        for here, there in (self._ends, self._ends[::-1]):
            thread = threading.Thread(target=self._carry, args=(here, there), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def _make(self, namespace: str, address: str) -> None:
        _ip("netns", "add", namespace)
        self._made.append(namespace)
        end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        self._ends.append(end)
        outside = f"sl{os.getpid() % 100_000}{len(self._ends)}"
        fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", outside.encode(), _IFF_TUN | _IFF_NO_PI))
        # The device goes into the namespace; this process keeps the other end of it.
        _ip("link", "set", outside, "netns", namespace, "name", DEVICE)
        _ip("-n", namespace, "link", "set", DEVICE, "mtu", str(MTU), "txqueuelen", "10000", "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", DEVICE)

    def _carry(self, here: int, there: int) -> None:
        """Takes packets from one end and hands them to the other when they would have arrived."""
        on_the_way: deque[tuple[float, bytes]] = deque()
        free = 0.0  # when the line has sent what was given to it
        while not self._closed.is_set():
            now = time.perf_counter()
            while on_the_way and on_the_way[0][0] <= now:
                _write(there, on_the_way.popleft()[1])
            wait = min(on_the_way[0][0] - time.perf_counter(), 0.2) if on_the_way else 0.2
            if not select.select([here], [], [], max(wait, 0.0))[0]:
                continue
            for _ in range(64):
                try:
                    packet = os.read(here, MTU + 64)
                except BlockingIOError:
                    break
                free = max(free, time.perf_counter()) + 8 * len(packet) / self.rate
                on_the_way.append((free + self.delay, packet))

    def command(self, side: int, arguments: list[str]) -> list[str]:
        """A command that runs in one of the namespaces."""
        return ["ip", "netns", "exec", self.namespaces[side], *arguments]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            os.close(end)
        for namespace in self._made:
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


def sent_bytes() -> int:
    """Bytes that this process's namespace has sent over the link, headers included: the device's own counter."""
    with open(f"/sys/class/net/{DEVICE}/statistics/tx_bytes", encoding="ascii") as file:
        return int(file.read())


def _write(end: int, packet: bytes) -> None:
    try:
        os.write(end, packet)
    except BlockingIOError:  # lost, as on a real line whose other end is overrun: TCP sends it again
        return


def _ip(*arguments: str) -> None:
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ConfigError("there is no command ip", remedy="install iproute2") from error
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ConfigError(f"ip {' '.join(arguments)} failed ({reason[0]})", remedy="run the benchmark as root")
