"""Each benchmark is a command with the options that it has."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from slipstream.bench import BENCHES
from slipstream.cli import output
from slipstream.cli.app import app
from slipstream.errors import ConfigError
from slipstream.report.record import Record


def test_every_benchmark_is_a_command_and_takes_quick_and_json() -> None:
    for name in BENCHES:
        done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", name.replace("_", "-"), "--help"])
        assert done.exit_code == 0, name
        assert "--quick" in done.output and "--json" in done.output, name


@pytest.mark.parametrize(
    ("name", "option"),
    [("step", "--policies"), ("step", "--speeds"), ("frontier", "--tolerances"), ("guard", "--budgets")],
)
def test_options_of_other_benchmarks_are_refused(name: str, option: str) -> None:
    done = CliRunner().invoke(app, ["bench", name, option, "1"])
    assert done.exit_code == 2 and "No such option" in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "frontier", "--also", "record.json"], "--html"),
        (["watch", "run", "--terminal", "--port", "9"], "--port"),
    ],
)
def test_options_that_would_do_nothing_are_refused(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, ConfigError) and said in str(done.exception)


@pytest.mark.parametrize("width", [80, 160])
def test_a_record_in_a_narrow_terminal_keeps_its_names_and_figures(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    record = Record.load(Path(__file__).parents[2] / "benchmarks/results/kernels.json")
    out = io.StringIO()
    monkeypatch.setattr(output, "console", Console(file=out, width=width))
    output.record_tables(record)
    shown = out.getvalue()
    assert "…" not in shown
    assert all(output.figure(row["p50"]) in shown and str(row["system"]) in shown for row in record.rows)
