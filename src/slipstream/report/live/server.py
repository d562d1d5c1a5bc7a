"""The page of a run while it trains, from a server on the loopback address.

Whoever can reach the address still needs the random part of it: other users of the machine do not have it, and a page
of another site that has its name resolve to 127.0.0.1 (DNS rebinding) fails at the Host header too. Nothing is served
but the page and its events, nothing is read from requests but their path, and only GET is answered.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from slipstream._version import __version__
from slipstream.errors import ConfigError
from slipstream.report.live.feed import Feed
from slipstream.report.page import content_policy, page

ADDRESS = "127.0.0.1"
MOST_CLIENTS = 16
"""Pages that are kept up to date at a time."""
_KEEP_ALIVE = 10.0
"""Seconds after which a comment tells the browser, and us, that the connection is alive."""
_HOSTS = frozenset({"127.0.0.1", "localhost"})


def script() -> str:
    """What the page runs: it takes new contents from the server and puts them in."""
    return resources.files("slipstream.report.live").joinpath("page.js").read_text(encoding="utf-8")


class LiveServer(ThreadingHTTPServer):
    """Serves one feed.

    Args:
        feed: The run's page.
        port: Port on 127.0.0.1; 0: one that is free.
        title: Heading of the page.

    Raises:
        ConfigError: The port is taken or may not be used.
    """

    daemon_threads = True

    def __init__(self, feed: Feed, *, port: int = 0, title: str = "Slipstream") -> None:
        self.feed, self.title = feed, title
        self.token = secrets.token_urlsafe(18)
        self._counting = threading.Lock()
        self.connected = 0
        """Pages that are kept up to date now."""
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"port {port} cannot be used ({reason})", remedy="choose another --port") from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_address[1]}/{self.token}/"

    @contextmanager
    def client(self) -> Iterator[bool]:
        """Counts a page while the block runs; whether there is room for it."""
        with self._counting:
            admitted = self.connected < MOST_CLIENTS
            self.connected += admitted
        try:
            yield admitted
        finally:
            with self._counting:
                self.connected -= admitted

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    server_version, sys_version = f"slipstream/{__version__}", ""
    protocol_version = "HTTP/1.1"
    timeout = 30
    """Seconds that a request may take to arrive."""

    def parse_request(self) -> bool:
        """Refuse all but GET before anything else is looked at."""
        if not super().parse_request():
            return False
        if self.command != "GET":
            self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is answered\n", {"Allow": "GET"})
            return False
        return True

    def do_GET(self) -> None:
        """The page, or its events."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in _HOSTS:
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, "this server is reached as 127.0.0.1 or localhost alone\n")
            return
        prefix, slash, rest = self.path.removeprefix("/").partition("/")
        if not slash or not secrets.compare_digest(prefix.encode("utf-8", "replace"), self.server.token.encode()):
            self._answer(HTTPStatus.NOT_FOUND, "no such page; use the whole address that slipstream watch printed\n")
        elif rest == "":
            self._page()
        elif rest == "events":
            self._events()
        else:
            self._answer(HTTPStatus.NOT_FOUND, "no such page\n")

    def _page(self) -> None:
        parts = [
            f"<h1>{escape(self.server.title)}</h1>",
            '<p class="soft" id="link" role="status">Waiting for the first figures.</p>',
            f'<main id="run">{self.server.feed.body}</main>',
        ]
        text = page(self.server.title, parts, script=script())
        policy = f"{content_policy(script())}; frame-ancestors 'none'"
        self._answer(HTTPStatus.OK, text, {"Content-Security-Policy": policy}, kind="text/html")

    def _events(self) -> None:
        with self.server.client() as admitted:
            if not admitted:
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "too many pages are open\n")
                return
            self.close_connection = True
            self._head(HTTPStatus.OK, "text/event-stream", {"Connection": "close"})
            version = 0
            with suppress(OSError):  # the browser went away
                while True:
                    newest, body, done = self.server.feed.wait(version, _KEEP_ALIVE)
                    if newest > version:
                        self._event("page", body)
                        version = newest
                    elif not done:
                        self.wfile.write(b": still here\n\n")
                    if done:
                        self._event("done", "The training is over, or slipstream watch was ended.")
                        return

    def _event(self, name: str, value: str) -> None:
        self.wfile.write(f"event: {name}\ndata: {json.dumps(value)}\n\n".encode())

    def _answer(
        self, status: HTTPStatus, text: str, headers: dict[str, str] | None = None, *, kind: str = "text/plain"
    ) -> None:
        body = text.encode("utf-8", "replace")
        self.close_connection = True
        self._head(
            status,
            f"{kind}; charset=utf-8",
            {"Content-Length": str(len(body)), "Connection": "close", **(headers or {})},
        )
        self.wfile.write(body)

    def _head(self, status: HTTPStatus, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        always = {
            "Content-Type": kind,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        for name, value in (always | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal is the user's."""
