from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from slipstream.errors import DataError
from slipstream.report.html import compare_page
from slipstream.report.runs import baseline, differing_settings, load_runs, unlike
from slipstream.report.table import columns, comparison, csv_text, terminal_table


def test_names_are_as_long_as_needed_to_tell_runs_apart(make_run: Callable[..., Path]) -> None:
    runs = load_runs([make_run("a/x"), make_run("b/x"), make_run("b/y")])
    assert [run.name for run in runs] == ["a/x", "b/x", "b/y"]


def test_the_baseline_is_the_run_that_skips_nothing(make_run: Callable[..., Path]) -> None:
    runs = load_runs([make_run("r", "random"), make_run("n", "none")])
    assert baseline(runs).name == "n"
    assert baseline(runs[:1]).name == "r"


def test_a_policy_may_be_given_with_its_settings(make_run: Callable[..., Path]) -> None:
    (run,) = load_runs([make_run("r", policy={"name": "psse", "keep": 0.9})])  # type: ignore[arg-type]
    assert run.policy == "psse"


def test_settings_that_differ_leave_out_the_folder(make_run: Callable[..., Path]) -> None:
    runs = load_runs([make_run("r", "random"), make_run("n", "none")])
    assert differing_settings(runs) == [("policy.name", ["random", "none"])]


def test_a_folder_without_result_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"result\.json: no finished run; name a folder"):
        load_runs([tmp_path])


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"auc": 0.7}', "\xff"])
def test_a_damaged_result_says_so(make_run: Callable[..., Path], text: str) -> None:
    folder = make_run("r")
    (folder / "result.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"result\.json"):
        load_runs([folder])


def test_a_comparison_of_runs_on_different_data_says_that_it_means_nothing(make_run: Callable[..., Path]) -> None:
    folders = [make_run("a"), make_run("b")]
    for folder in folders:
        file = folder / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"dataset": f"of {folder.name}"}))
    runs = load_runs(folders)
    assert not unlike(runs[:1]) and unlike(runs) == "are of different data"
    assert "mean nothing" not in str(terminal_table(runs[:1]).caption)
    assert "mean nothing" in str(terminal_table(runs).caption)


def test_a_comparison_of_runs_scored_on_different_samples_says_that_it_means_nothing(
    make_run: Callable[..., Path],
) -> None:
    like = {"mode": "holdout", "samples_scored": 500}
    runs = load_runs([make_run("a", **like), make_run("b", **like), make_run("c", **{**like, "samples_scored": 600})])
    assert unlike(runs[:2]) == "" and "mean nothing" not in str(terminal_table(runs[:2]).caption)
    assert "the runs were scored on different samples" in str(terminal_table(runs).caption)
    assert "The runs were scored on different samples" in compare_page(runs)


def test_names_of_runs_are_no_markup(make_run: Callable[..., Path]) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal_table(load_runs([make_run("full[old]"), make_run("[red]a", "random")]), width=200))
    text = console.export_text()
    assert "against full[old]" in text and "[red]a" in text


def test_tables_agree_with_the_results(make_run: Callable[..., Path]) -> None:
    runs = load_runs([make_run("n"), make_run("r", "random", auc=0.75, seconds=5.0)])
    rows = [dict(zip([column.title for column in columns(runs)], row, strict=True)) for row in comparison(runs)]
    assert rows[0]["speed-up"] == "1.00x" and rows[0]["Δ AUC"] == "–"
    assert rows[1]["speed-up"] == "2.00x" and rows[1]["Δ AUC"] == "-0.0200"
    assert csv_text(runs).splitlines()[2].startswith("r,random,0.75,")
    assert (
        len(terminal_table(runs, width=80).columns) < len(terminal_table(runs, width=200).columns) == len(columns(runs))
    )


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("auc", [None, 0.77])
def test_a_terminal_shows_as_many_columns_as_fit_and_none_without_figures(
    make_run: Callable[..., Path], width: int, auc: float | None
) -> None:
    ranking = {"k": 10, "ndcg": 0.2651, "recall": 0.0967}
    runs = load_runs([make_run(f"by-{name}", name, auc=auc, ranking=ranking) for name in ("none", "random")])
    out = io.StringIO()
    Console(file=out, width=width).print(terminal_table(runs, width=width))
    shown = out.getvalue()
    assert all(len(line) <= width for line in shown.splitlines())
    assert all(text in shown for text in ("by-random", "0.2651", "+0.0000", "100.0%"))
    assert ("AUC" in shown) == (auc is not None)
    assert width < 200 or "Gini" not in shown  # no run of these says anything of it
    assert len(terminal_table(runs, width=width).columns) >= (7 if auc is None else 8)
