"""``slipstream watch``."""

from __future__ import annotations

import threading
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import output
from slipstream.errors import ConfigError

if TYPE_CHECKING:
    from slipstream.report.live.server import LiveServer
    from slipstream.report.live.watched import Watched

_GOODBYE = 5.0
"""Seconds that open pages get to take over the last figures."""


def watch(
    run: Annotated[
        Path, typer.Argument(help="Run folder, as given to `slipstream train --out`; the training may begin later.")
    ],
    terminal: Annotated[bool, typer.Option("--terminal", help="Show it here, without a server and a browser.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0: one that is free.")] = 0,
    interval: Annotated[float, typer.Option(min=0.5, help="Seconds between two drawings of the page, at least.")] = 2.0,
) -> None:
    """Follow a training while it runs, on a page of a local server or in the terminal; ends with the training."""
    from slipstream.report.live.watched import Watched

    if terminal and port:
        raise ConfigError("--port is of the page, which --terminal does without", remedy="leave one of them out")
    watched = Watched(run)
    watched.look()
    if watched.finished:
        output.say(f"{run}: this training is over; `slipstream report {run}` makes its page")
        return
    if not run.exists():
        output.say(f"{run}: nothing there yet; waiting for a training to begin (Ctrl-C ends)")
    if terminal:
        from slipstream.report.live.terminal import watch_in_terminal

        watch_in_terminal(watched, output.console)
        return
    _serve(watched, port, interval)


def _serve(watched: Watched, port: int, interval: float) -> None:
    from slipstream.report.live.feed import Feed
    from slipstream.report.live.server import LiveServer
    from slipstream.report.run_page import state

    feed = Feed(watched, interval)
    with LiveServer(feed, port=port, title=f"Slipstream: {watched.folder.name}") as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            output.say(f"open {server.url} (this machine only; Ctrl-C ends)")
            feed.follow(say=output.say)
            output.say(state(watched.run()))
            _wait_for_pages(server)
        finally:
            feed.end()
            server.shutdown()
            thread.join()


def _wait_for_pages(server: LiveServer) -> None:
    for _ in range(int(_GOODBYE / 0.1)):
        if not server.connected:
            return
        sleep(0.1)
