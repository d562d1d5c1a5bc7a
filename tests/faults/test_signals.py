"""A training that is asked to end, in whichever way, is saved and goes on to the same bits."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.faults.test_faults import config, make  # noqa: F401
from tests.outcome import outcome

from slipstream.cli.entry import run
from slipstream.data.store import Store
from slipstream.errors import Interrupted
from slipstream.training import EpochDone, StepDone, train
from slipstream.training.config import save_config

ENDS = [(signal.SIGTERM, Interrupted), (signal.SIGHUP, Interrupted), (signal.SIGINT, KeyboardInterrupt)]


@pytest.fixture(autouse=True)
def by_themselves() -> Iterator[None]:
    """Signals as an interactive shell gives them: in the background the tests may be started with them ignored."""
    given = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in given.items()}
    yield
    assert all(signal.getsignal(number) is handler for number, handler in given.items()), "handlers are put back"
    for number, handler in before.items():
        signal.signal(number, handler)


def killing(*numbers: int, step: int = 7) -> Callable[[object], None]:
    """A listener that sends the process itself signals after a step."""

    def listener(event: object) -> None:
        if isinstance(event, StepDone) and event.step == step:
            for number in numbers:
                os.kill(os.getpid(), number)

    return listener


@pytest.mark.parametrize(("number", "error"), ENDS)
def test_a_signal_saves_and_the_rest_is_equal(make, tmp_path, number, error):  # noqa: F811
    store, out = make(), tmp_path / "a"
    began = time.monotonic()
    with pytest.raises(error, match="saved; go on with --resume"):
        train(config(out=out), store=store, listeners=[killing(number, number)])  # twice at once is once
    assert time.monotonic() - began < 5
    assert [entry.name for entry in (out / "checkpoints").iterdir()] == ["step-000000000007"]
    train(config(out=out), store=store, resume=True)
    train(config(out=tmp_path / "whole"), store=store)
    assert outcome(out) == outcome(tmp_path / "whole")
    with pytest.raises(error, match="nothing of it was saved"):
        train(config(), store=store, listeners=[killing(number)])


def test_a_second_ctrl_c_does_not_wait_and_harms_nothing(make, tmp_path, monkeypatch):  # noqa: F811
    store, out = make(), tmp_path / "a"
    monkeypatch.setattr("slipstream.training.termination._AGAIN", 0.0)
    reached: list[object] = []
    with pytest.raises(KeyboardInterrupt) as raised:
        train(
            config(out=out, checkpoint={"steps": 3}),
            store=store,
            listeners=[killing(signal.SIGINT, signal.SIGINT), reached.append],
        )
    assert not raised.value.args and not any(isinstance(event, StepDone) and event.step == 7 for event in reached)
    assert sorted(entry.name for entry in (out / "checkpoints").iterdir())[-1] == "step-000000000006"
    train(config(out=out, checkpoint={"steps": 3}), store=store, resume=True)
    train(config(out=tmp_path / "whole"), store=store)
    assert outcome(out) == outcome(tmp_path / "whole")


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize(("number", "error"), ENDS)
def test_a_signal_after_the_last_step_is_not_lost(make, tmp_path, number, error, final):  # noqa: F811
    def killing(event: object) -> None:
        if isinstance(event, EpochDone):
            os.kill(os.getpid(), number)

    store, out = make(), tmp_path / "a"
    settings = {"checkpoint": {"final": final}, "epochs": 1}
    with pytest.raises(error, match="saved; go on with --resume"):
        train(config(out=out, **settings), store=store, listeners=[killing])
    result = train(config(out=out, **settings), store=store, resume=True)
    assert (out / "checkpoints" / "final").exists() == final
    assert result.auc == train(config(**settings), store=store).auc
    with pytest.raises(error, match="nothing of it was saved"):
        train(config(**settings), store=store, listeners=[killing])


def test_a_handler_of_another_language_stays(make, monkeypatch):  # noqa: F811
    """Python cannot put it back: it gives None for it."""
    monkeypatch.setattr(signal, "getsignal", lambda _: None)
    monkeypatch.setattr(signal, "signal", lambda *_: pytest.fail("was taken over"))
    assert train(config(), store=make()).steps


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_signals_that_are_ignored_or_answered_by_others_stay_so(make, number):  # noqa: F811
    came: list[int] = []
    for handler in (signal.SIG_IGN, lambda number, _frame: came.append(number)):
        before = signal.signal(number, handler)
        try:
            assert train(config(), store=make(f"store {len(came)} {handler}"[:12]), listeners=[killing(number)]).steps
        finally:
            signal.signal(number, before)
    assert came == [number]


class Started:
    """A long training in a process of its own, which has begun."""

    def __init__(self, store: Store, folder: Path, **streams: int) -> None:
        self.out, settings = folder / "run", folder / "config.yaml"
        save_config(config(epochs=100_000, log_every=10), settings)
        self.arguments = ["train", str(store.path), "--config", str(settings), "--out", str(self.out)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "slipstream", *self.arguments],
            stdout=streams.get("stdout", subprocess.DEVNULL),
            stderr=streams.get("stderr", subprocess.PIPE),
            text=True,
            start_new_session=True,
        )
        metrics, until = self.out / "metrics.jsonl", time.monotonic() + 120
        while time.monotonic() < until and not (metrics.exists() and metrics.read_text("utf-8").count("\n") > 3):
            time.sleep(0.05)


@pytest.mark.parametrize(("number", "error"), ENDS)
def test_signals_and_resume_through_the_command_line(make, tmp_path, capsys, number, error):  # noqa: F811
    started = Started(make(), tmp_path)
    started.process.send_signal(number)
    _, said = started.process.communicate(timeout=60)
    assert started.process.returncode == 128 + number
    assert "--resume" in said and len(said.strip().splitlines()) == 1
    # The checkpoint is found, and what differs from its configuration is named.
    assert run(["train", "--resume", str(started.out), "--set", "epochs=2", "--quiet"]) == 2
    assert "epochs" in capsys.readouterr().err
    if number == signal.SIGTERM:
        short = [*started.arguments[:-1], str(tmp_path / "short"), "--quiet", "--set", "epochs=2"]
        assert run(short) == 0 and run(["train", "--resume", str(tmp_path / "short"), "--quiet"]) == 0


def test_who_stops_reading_does_not_end_a_training(make, tmp_path):  # noqa: F811
    """A pipe without a reader, then a terminal that is closed, as by a connection that breaks."""
    reader, writer = os.pipe()
    os.close(reader)
    started = Started(make(), tmp_path, stdout=writer, stderr=writer)
    os.close(writer)
    assert started.process.poll() is None, "it trains on"
    started.process.terminate()
    assert started.process.wait(60) == 143


def test_a_training_outlives_its_terminal(make, tmp_path):  # noqa: F811
    master, terminal = pty.openpty()
    started = Started(make(), tmp_path, stdout=terminal, stderr=terminal)
    os.close(terminal)
    assert b"training" in os.read(master, 4096)
    os.close(master)  # SIGHUP comes to who has it as the controlling terminal; this one is only written to
    lines = (started.out / "metrics.jsonl").read_text("utf-8").count("\n")
    time.sleep(1.0)  # the bar is drawn four times in that
    assert started.process.poll() is None, "it trains on"
    assert (started.out / "metrics.jsonl").read_text("utf-8").count("\n") > lines
    started.process.send_signal(signal.SIGHUP)
    assert started.process.wait(60) == 129
    assert list((started.out / "checkpoints").iterdir())
