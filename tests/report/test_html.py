from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from slipstream.report.html import compare_page, findings
from slipstream.report.runs import load_runs

CURVE = [{"samples": 1000 * step, "auc": 0.6 + 0.01 * step} for step in range(1, 6)]
BUCKETS = {"head": {"auc": 0.8}, "torso": {"auc": 0.75}, "tail": {"auc": None}}


@pytest.fixture
def folders(make_run: Callable[..., Path]) -> list[Path]:
    return [
        make_run("full", learning_curve=CURVE, by_popularity=BUCKETS),
        make_run("random", "random", auc=0.75, seconds=6.0, learning_curve=CURVE, by_popularity=BUCKETS),
        make_run("<img src=x onerror=alert(1)> $x$ & [red]", "psse", auc=0.76, seconds=8.0, learning_curve=CURVE),
    ]


class _Parser(HTMLParser):
    void = frozenset({"meta", "link", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"an event handler on <{tag}>"
            if name == "id":
                self.ids.append(str(value))
            if name in {"href", "src", "xlink:href"}:
                self.addresses.append(str(value))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_refers_to_nothing_outside(folders: list[Path]) -> None:
    page = compare_page(load_runs(folders))
    parser = _Parser()
    parser.feed(page)
    assert parser.open == []
    assert parser.tags.count("svg") == 3
    assert not {"script", "iframe", "object", "img"} & set(parser.tags)
    assert all(address.startswith(("#", "data:")) for address in parser.addresses)
    assert len(set(parser.ids)) == len(parser.ids)
    targets = {address[1:] for address in parser.addresses if address.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert targets <= set(parser.ids)


def test_no_stand_in_colour_is_left(folders: list[Path]) -> None:
    page = compare_page(load_runs(folders))
    assert "#0101" not in page and "#0202" not in page and "#0303" not in page
    assert "prefers-color-scheme: dark" in page


def test_every_run_has_its_figures(folders: list[Path]) -> None:
    page = compare_page(load_runs(folders))
    for figure in ("0.7700", "0.7500", "0.7600", "-0.0200", "1.67x", "1.25x"):
        assert figure in page


def test_a_single_run_without_curves_makes_a_page(make_run: Callable[..., Path]) -> None:
    page = compare_page(load_runs([make_run("alone")]))
    assert page.count("<svg") == 1


def test_a_run_without_auc_is_said_to_have_none(make_run: Callable[..., Path]) -> None:
    runs = load_runs([make_run("full"), make_run("one class", "random", auc=None)])
    assert findings(runs) == ["one class (random): 1.00x the speed of full, AUC unknown."]
    assert compare_page(runs).count("<svg") == 1


def test_findings_name_the_control(folders: list[Path]) -> None:
    random, psse = findings(load_runs(folders))
    assert random.startswith("random (random): 1.67x the speed of full, AUC -0.0200")
    assert psse.endswith("against random skipping (random, 6.0 s) AUC +0.0100.")


@pytest.mark.browser
def test_chromium_has_nothing_to_say(
    folders: list[Path], tmp_path: Path, open_in_browser: Callable[[Path], tuple[str, list[str]]]
) -> None:
    file = tmp_path / "page.html"
    file.write_text(compare_page(load_runs(folders)), encoding="utf-8")
    dom, console = open_in_browser(file)
    assert console == []
    assert dom.count("<svg") == 3 and "onerror=alert(1)&gt;" in dom
