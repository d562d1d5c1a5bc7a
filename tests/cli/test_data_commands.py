from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from slipstream.cli.inspect import inspect
from slipstream.cli.prepare import prepare
from slipstream.data.store import Store
from slipstream.errors import ConfigError, DataError

HEADER = "click,user,item,price\n"
ROWS = "".join(f"{row % 3 == 0:d},u{row % 7},i{row % 5},{row / 10}\n" for row in range(60))
SCHEMA = "label: click\ncategorical: [user, item]\ndense: [price]\n"


def call(command: object, *arguments: str | Path) -> str:
    app = typer.Typer()
    app.command()(command)  # type: ignore[arg-type]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def raw(tmp_path: Path) -> list[str | Path]:
    (tmp_path / "raw.csv").write_text(HEADER + ROWS, encoding="utf-8")
    (tmp_path / "schema.yaml").write_text(SCHEMA, encoding="utf-8")
    return [tmp_path / "raw.csv", tmp_path / "data", "--schema", tmp_path / "schema.yaml"]


def test_prepare_then_inspect(raw: list[str | Path], tmp_path: Path) -> None:
    said = call(prepare, *raw)
    assert "60" in said and "user (8 rows), item (6 rows)" in said
    assert Store.open(tmp_path / "data").num_samples == 60
    said = call(inspect, tmp_path / "data", "--slices", "3", "--json", tmp_path / "profile.json")
    profile = json.loads((tmp_path / "profile.json").read_text(encoding="utf-8"))
    assert profile["num_samples"] == 60 and [row["name"] for row in profile["features"]] == ["user", "item"]
    assert all(word in said for word in ("user", "item", "all", "Gini"))


def test_options_come_from_flags_and_assignments(raw: list[str | Path], tmp_path: Path) -> None:
    call(prepare, *raw, "--hash-rows", "16", "--set", "dense=none")
    store = Store.open(tmp_path / "data")
    assert [feature.num_rows for feature in store.features] == [16, 16]
    assert float(store.dense.max()) == pytest.approx(5.9)


def test_an_existing_data_set_is_replaced_only_on_demand(raw: list[str | Path]) -> None:
    call(prepare, *raw)
    with pytest.raises(DataError):
        call(prepare, *raw)
    call(prepare, *raw, "--overwrite")


def test_a_bad_row_stops_or_is_quarantined(raw: list[str | Path], tmp_path: Path) -> None:
    (tmp_path / "raw.csv").write_text(HEADER + ROWS + "1,u1,i1,much\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"raw\.csv:62, column 'price'"):
        call(prepare, *raw)
    said = call(prepare, *raw, "--on-bad-row", "quarantine")
    assert "quarantined rows" in said
    with pytest.raises(ConfigError, match="on_bad_row"):
        call(prepare, *raw, "--on-bad-row", "ignore")


def test_inspect_wants_a_prepared_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        call(inspect, tmp_path)


def test_a_table_of_one_row_can_be_inspected(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("clicked,user,item\n1,anna,tea\n", encoding="utf-8")
    (tmp_path / "schema.yaml").write_text("label: clicked\ncategorical: [user, item]\n", encoding="utf-8")
    said = call(prepare, tmp_path / "one.csv", tmp_path / "one", "--schema", tmp_path / "schema.yaml")
    assert "1 (100.0%)" in said  # positives
    assert "mean over 1 slices" in call(inspect, tmp_path / "one")


@pytest.mark.parametrize("odd", [None, "many", -1.5, [1], {"a": 1}, True, "[red]"])
def test_whatever_a_stores_provenance_says_it_can_be_inspected(odd: object, raw: list[str | Path]) -> None:
    call(prepare, *raw)
    path = Path(raw[1]) / "store.json"
    names = ("format", "bad_rows", "negatives", "item", "user", "split", "options")
    changed = {**json.loads(path.read_text()), "provenance": dict.fromkeys(names, odd)}
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert "fingerprint" in call(inspect, raw[1])


@pytest.mark.parametrize("damaged", [False, True])
def test_what_is_no_part_of_a_data_set_is_not_removed_with_it(raw: list[str | Path], damaged: bool) -> None:
    call(prepare, *raw)
    data = Path(raw[1])
    if damaged:
        (data / "store.json").write_text("{}", encoding="utf-8")
    for place in ("raw.csv", "vocabulary/notes.txt", "run/config.yaml"):
        (data / place).parent.mkdir(exist_ok=True)
        (data / place).write_text(HEADER + ROWS, encoding="utf-8")
        source = data / place if place == "raw.csv" else raw[0]
        with pytest.raises(DataError, match=rf"data: holds {place}, which is no part .*; move that elsewhere"):
            call(prepare, source, *raw[1:], "--overwrite")
        assert (data / place).read_text(encoding="utf-8") == HEADER + ROWS
        (data / place).unlink()
    (data / "link").symlink_to(data.parent)
    with pytest.raises(DataError, match="data: holds link"):
        call(prepare, *raw, "--overwrite")
    (data / "link").unlink()
    call(prepare, *raw, "--overwrite")
    assert Store.open(data).num_samples == 60


def test_a_data_set_is_not_made_of_its_own_files(raw: list[str | Path], tmp_path: Path) -> None:
    call(prepare, *raw)
    (tmp_path / "schema.yaml").write_text("label: count\ncategorical: [value]\n", encoding="utf-8")
    source = tmp_path / "data" / "vocabulary" / "user.parquet"
    with pytest.raises(DataError, match=r"user\.parquet: lies in the output folder; choose another"):
        call(prepare, source, *raw[1:], "--overwrite", "--label-threshold", "1")
    assert Store.open(tmp_path / "data").num_samples == 60
