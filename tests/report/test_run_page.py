"""The page of one run: whole, self-contained, readable on a phone and in the dark."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.browser import Tab
from tests.cli.test_run_commands import call
from tests.report.test_html import SCRIPT, _Parser

from slipstream.errors import DataError
from slipstream.report.figures import inputs_skipped, quality_over_time, updates_skipped
from slipstream.report.html import compare_page
from slipstream.report.log import RunLog
from slipstream.report.run_page import run_page
from slipstream.report.runs import load_runs, open_run

DRAWN = (
    "Quality against time",
    "Loss of the steps",
    "Row updates skipped",
    "Gates of user by popularity",
    "Calibration",
    "Where the time went",
    "AUC by popularity",
)


def parsed(page: str) -> _Parser:
    parser = _Parser()
    parser.feed(page)
    assert parser.open == [] and len(set(parser.ids)) == len(parser.ids)
    assert not {"script", "iframe", "object", "img"} & set(parser.tags)
    assert all(address.startswith(("#", "data:")) for address in parser.addresses)
    return parser


def test_a_run_is_drawn_whole(trained: Path, tmp_path: Path) -> None:
    said = call("report", trained, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert parsed(page).tags.count("svg") == len(DRAWN)
    assert all(f"<figcaption>{caption}" in page for caption in DRAWN)
    assert "Finished; policy saturation." in page and "policy.warmup_steps" in page and "cores" in page
    assert "page.html" in said and "AUC" in said


def test_without_a_file_the_page_goes_into_the_run(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    call("report", tmp_path / "run")
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_run_that_is_not_over_says_how_far_it_is(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("result.json"))
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    metrics.write_text("".join(lines[: len(lines) // 2]) + "{not JSON\n", encoding="utf-8")
    page = run_page(open_run(tmp_path / "run"))
    assert "Not over: " in page and "of 5,400 samples" in page
    assert "could not be read: 1 of run" in page
    assert parsed(page).tags.count("svg") >= 4


def test_a_run_of_an_earlier_version_makes_a_page(make_run: Callable[..., Path]) -> None:
    page = run_page(open_run(make_run("old")))
    assert "0.7700" in page and parsed(page).tags.count("svg") == 0


def test_two_runs_are_drawn_side_by_side(trained: Path, make_run: Callable[..., Path]) -> None:
    page = compare_page(load_runs([make_run("full"), trained]))
    assert parsed(page).tags.count("svg") == len(DRAWN) + 1
    assert "<figcaption>Gates of user by popularity, run" in page


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no run folder; name a folder given to"):
        open_run(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        open_run(tmp_path / "none")


def test_every_text_of_a_log_is_escaped(make_run: Callable[..., Path]) -> None:
    run = make_run("hostile", "psse", phase_seconds={SCRIPT: 3.0})
    run.joinpath("metrics.jsonl").write_text(
        f"""{{"event": "start", "total_samples": 9, "machine": {{"{SCRIPT}": "{SCRIPT}"}}, "commit": "{SCRIPT}"}}
{{"event": "gates", "samples": 5, "seconds": 1.0, "feature": "{SCRIPT}", "open": {{"head": 0.5}}}}
{{"event": "policy", "policy": "{SCRIPT}", "seconds": 1.0, "{SCRIPT}": "{SCRIPT}"}}
""",
        encoding="utf-8",
    )
    page = run_page(open_run(run))
    assert parsed(page).tags.count("svg") == 2
    assert "alert(1)" in page and SCRIPT not in page


def test_shares_are_those_between_two_points_not_since_the_start() -> None:
    log = RunLog()
    for step, (kept, skipped) in enumerate([(100, 0), (150, 50), (150, 150)], start=1):
        text = '{"event": "step", "step": %d, "samples": %d, "loss": 1.0, "dense_lr": 1.0, "embedding_lr": 1.0, '
        text += '"seconds": 1.0, "inputs_seen": %d, "inputs_kept": %d, "lookups": %d, "skipped": %d}'
        log.add((text % (step, 100 * step, 100 * step, kept, 100 * step, skipped)).encode())
    from slipstream.report.runs import Run

    run = Run("r", {}, log=log)
    assert inputs_skipped(run) == ([100, 200, 300], [0, 0.5, 1])
    assert updates_skipped(run) == ([100, 200, 300], [0, 0.5, 1])
    assert quality_over_time(run) is None


@pytest.mark.browser
def test_it_is_readable_on_a_phone_and_in_the_dark(
    trained: Path, make_run: Callable[..., Path], tmp_path: Path, tab: Tab
) -> None:
    long = make_run("a-run-with-a-name-that-is-rather-long-" * 3, "random", seconds=6.0)
    pages = {"run": run_page(open_run(trained)), "compare": compare_page(load_runs([trained, long, make_run("x")]))}
    for name, page in pages.items():
        file = tmp_path / f"{name}.html"
        file.write_text(page, encoding="utf-8")
        tab.open(file.as_uri(), width=390, height=844)
        assert tab.value("innerWidth") == 390
        assert tab.value("document.documentElement.scrollWidth") <= 390, "the body does not scroll sideways"
        small = "[...document.querySelectorAll('p, dd, td, th, h1, h2, figcaption')].map(e => getComputedStyle(e))"
        assert tab.value(f"Math.min(...{small}.map(s => parseFloat(s.fontSize)))") >= 14
        light = tab.value("getComputedStyle(document.body).backgroundColor")
        tab.open(file.as_uri(), width=390, height=844, dark=True)
        assert light == "rgb(255, 255, 255)"
        assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
        # What a drawing is made of takes the page's colours: its text is that of the page, light on dark.
        text = "getComputedStyle(document.querySelector('svg text, svg g[fill]')).color"
        assert tab.value(text) == tab.value("getComputedStyle(document.body).color")
    assert tab.console == []
