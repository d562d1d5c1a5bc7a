"""Each benchmark is a command with the options that it has."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from slipstream.bench import BENCHES
from slipstream.cli.app import app
from slipstream.errors import ConfigError


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
