"""``slipstream watch``: a run that grows under it, and requests that are none of its page's."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text
from tests.browser import Tab
from tests.cli.test_run_commands import call

from slipstream.errors import ConfigError, DataError
from slipstream.report.live import terminal
from slipstream.report.live import watched as watched_module
from slipstream.report.live.feed import Feed
from slipstream.report.live.server import MOST_CLIENTS, LiveServer
from slipstream.report.live.terminal import sparkline, watch_in_terminal
from slipstream.report.live.watched import Watched


def replay(source: Path, target: Path, pause: float = 0.01) -> threading.Thread:
    """Writes what a real training wrote, line by line, with a line in it that nobody can read."""

    def write() -> None:
        time.sleep(10 * pause)
        target.mkdir(parents=True)
        shutil.copy(source / "config.yaml", target)
        lines = (source / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        with (target / "metrics.jsonl").open("wb", buffering=0) as file:
            for line in [*lines[:10], b"\xff{\n", *lines[10:]]:
                file.write(line[:9])
                file.write(line[9:])
                time.sleep(pause)
        shutil.copy(source / "result.json", target / "result.part")
        (target / "result.part").rename(target / "result.json")

    thread = threading.Thread(target=write)
    thread.start()
    return thread


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Path], LiveServer]]:
    servers: list[tuple[LiveServer, threading.Thread]] = []

    def start(folder: Path) -> LiveServer:
        server = LiveServer(Feed(Watched(folder), interval=0.05), title="a <run>")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        servers.append((server, thread))
        return server

    yield start
    for server, thread in servers:
        server.feed.end()
        server.shutdown()
        thread.join()
        server.server_close()


def ask(server: LiveServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.headers), text


def events(server: LiveServer) -> list[tuple[str, str]]:
    """All events until the server ends them."""
    _, headers, text = ask(server, f"/{server.token}/events")
    assert headers["Content-Type"] == "text/event-stream"
    found = []
    for block in text.strip().split("\n\n"):
        if not block.startswith(":"):
            kind, data = block.split("\n")
            found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_the_count_of_open_pages_is_right_whatever_threads_do(tmp_path: Path, serve) -> None:
    server = serve(tmp_path / "run")
    inside = threading.Barrier(MOST_CLIENTS + 1)

    def come_and_go() -> None:
        with server.client() as admitted:
            assert admitted
            inside.wait(timeout=30)
            inside.wait(timeout=30)

    for _ in range(3):
        threads = [threading.Thread(target=come_and_go) for _ in range(MOST_CLIENTS)]
        for thread in threads:
            thread.start()
        inside.wait(timeout=30)
        assert server.connected == MOST_CLIENTS
        status, _, text = ask(server, f"/{server.token}/events")
        assert status == 503 and "too many pages" in text and server.connected == MOST_CLIENTS
        inside.wait(timeout=30)
        for thread in threads:
            thread.join()
        assert server.connected == 0


def test_a_run_is_followed_from_before_its_start_to_its_result(trained: Path, tmp_path: Path, serve) -> None:
    server = serve(tmp_path / "later" / "run")
    writing = replay(trained, tmp_path / "later" / "run")
    following = threading.Thread(target=server.feed.follow, kwargs={"poll": 0.02})
    following.start()
    told = events(server)
    following.join()
    writing.join()
    pages = [text for kind, text in told if kind == "page"]
    assert told[-1][0] == "done" and len(pages) >= 2
    assert "Not over" in pages[0] and "Finished; policy saturation." in pages[-1]
    assert "could not be read: 1 of run" in pages[-1] and "<script" not in pages[-1]
    assert server.feed.watched.run().log.steps


def test_nothing_is_drawn_while_nobody_looks(trained: Path, tmp_path: Path) -> None:
    feed = Feed(Watched(tmp_path / "run"), interval=0.01)
    writing = replay(trained, tmp_path / "run", pause=0.002)
    feed.follow(poll=0.01)
    writing.join()
    assert feed.version == 1, "the last page alone"


def test_only_its_own_page_is_answered(trained: Path, serve) -> None:
    server = serve(trained)
    good = f"/{server.token}/"
    status, headers, text = ask(server, good)
    assert status == 200 and "a &lt;run&gt;" in text
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    assert "script-src 'sha256-" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
    port = server.server_address[1]
    for host in (f"localhost:{port}", "127.0.0.1", "localhost:9"):
        assert ask(server, good, Host=host)[0] == 200, "another port: through ssh -L"
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil:80", ""):
        assert ask(server, good, Host=host)[0] == 421, host
    for path in ("/", "/events", f"/{server.token[:-1]}/", f"/{server.token}", f"/{server.token}x/", "/%ff/", "//"):
        assert ask(server, path)[0] == 404, path
    for path in ("metrics.jsonl", "../", "../../etc/passwd", "events/", "%2e%2e/"):
        assert ask(server, good + path)[0] == 404, path
    for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "UNHEARD"):
        assert ask(server, good, method)[0] == 405, method


def test_addresses_differ_and_the_server_is_on_the_loopback_alone(trained: Path, serve) -> None:
    first, second = serve(trained), serve(trained)
    assert first.token != second.token and len(first.token) >= 24
    assert first.server_address[0] == "127.0.0.1" and first.url.startswith("http://127.0.0.1:")


def test_a_port_that_is_taken_is_named(trained: Path, serve) -> None:
    taken = serve(trained).server_address[1]
    with pytest.raises(ConfigError, match=f"port {taken} cannot be used .*choose another --port"):
        LiveServer(Feed(Watched(trained)), port=taken)


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.txt").touch()
    for wrong in (tmp_path, tmp_path / "file.txt"):
        with pytest.raises(DataError, match=r"no run folder.*; name a folder given to `slipstream train --out`"):
            Watched(wrong)
    (tmp_path / "empty").mkdir()
    Watched(tmp_path / "empty")


def test_the_terminal_follows_to_the_end(trained: Path, tmp_path: Path) -> None:
    console = Console(record=True, width=100, force_terminal=True, file=(tmp_path / "screen").open("w"))
    writing = replay(trained, tmp_path / "run")
    watch_in_terminal(Watched(tmp_path / "run"), console, poll=0.05)
    writing.join()
    text = console.export_text()
    assert "Finished; policy saturation." in text and "AUC so far" in text and "unreadable lines" in text


def test_the_terminal_shows_at_once_what_there_is(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(trained / "metrics.jsonl", run)
    watched, shown = Watched(run), []
    watched.look()  # as the command does, to see whether it is over
    monkeypatch.setattr(terminal, "screen", lambda run: shown.append(run.finished) or Text())
    monkeypatch.setattr(terminal.time, "sleep", lambda seconds: shutil.copy(trained / "result.json", run))
    watch_in_terminal(watched, Console(file=(tmp_path / "screen").open("w")))
    assert shown == [False, True]


def test_a_training_that_was_killed_is_said_to_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_module, "PATIENCE", 0.0)
    run = tmp_path / "run"
    watched = Watched(run)
    assert watched.deserted() == ""  # not begun
    run.mkdir()
    (run / "config.yaml").write_text("data: d\n")
    watched.look()
    with (tmp_path / "run" / "metrics.jsonl").open("wb"):
        descriptor = os.open(run, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # as a training does
        assert watched.deserted() == ""
        os.close(descriptor)
    said = watched.deserted()
    assert said.endswith(f"`slipstream train --resume {run}` goes on, and is followed here")
    assert watched.deserted() == ""  # once
    monkeypatch.setattr(watched_module, "PATIENCE", 60.0)
    (run / "metrics.jsonl").write_text("x\n")
    watched.look()
    watched._told = False
    assert watched.deserted() == ""  # there was news a moment ago


def test_a_finished_run_is_said_to_be_over(trained: Path) -> None:
    assert "this training is over" in call("watch", trained)


def test_a_sparkline_spans_its_values() -> None:
    assert sparkline([0, 1, 2, 7]) == "▁▂▃█" and sparkline([3.0]) == "▁"
    assert len(sparkline(list(range(1000)))) == 24


@pytest.mark.browser
def test_the_page_follows_in_chromium(trained: Path, tmp_path: Path, serve, tab: Tab) -> None:
    server = serve(tmp_path / "run")
    tab.open(server.url)
    assert "Waiting" in tab.value("document.getElementById('link').textContent")
    writing = replay(trained, tmp_path / "run", pause=0.03)
    following = threading.Thread(target=server.feed.follow, kwargs={"poll": 0.02})
    following.start()
    tab.wait("document.getElementById('run').textContent.includes('Not over')")
    tab.wait("document.getElementById('run').textContent.includes('Finished')")
    tab.wait("document.getElementById('link').textContent.includes('over')")
    following.join()
    writing.join()
    assert tab.value("document.querySelectorAll('svg').length") >= 7
    assert tab.console == []
