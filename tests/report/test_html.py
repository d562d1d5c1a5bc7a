from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

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


SCRIPT = "<script>alert(1)</script>"


def test_every_string_of_a_run_is_escaped(make_run: Callable[..., Path], tmp_path: Path) -> None:
    hostile = f'{SCRIPT}"\'>&--><style>*{{}}</style><img src=x onerror=alert(1)> style="fill:url(http://x)"'
    run = make_run(
        "run <script>alert(1)<",
        hostile,
        learning_curve=CURVE,
        by_popularity={hostile: {"auc": 0.7}},
        machine={hostile: hostile},
        versions={hostile: hostile},
        commit=hostile,
        dataset=hostile,
    )
    (run / "config.yaml").write_text(yaml.safe_dump({hostile: hostile, "data": hostile}), encoding="utf-8")
    page = compare_page(load_runs([run, make_run("full", learning_curve=CURVE, by_popularity=BUCKETS)]), title=hostile)
    parser = _Parser()
    parser.feed(page)
    assert parser.open == []
    assert not {"script", "img"} & set(parser.tags) and parser.tags.count("style") == 1
    assert all(address.startswith(("#", "data:")) for address in parser.addresses)
    assert "alert(1)" in page and SCRIPT not in page


def test_the_page_forbids_itself_everything_but_its_style(folders: list[Path]) -> None:
    page = compare_page(load_runs(folders))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    style = re.search(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    assert policy and style and page.index("Content-Security-Policy") < page.index("<style>")
    digest = b64encode(sha256(style.group(1).encode()).digest()).decode()
    assert policy.group(1).startswith(f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;")
    assert "unsafe" not in policy.group(1)
    assert not re.search(r"<[^<>]*\sstyle=", page)  # a strict policy would not let a style attribute count
    assert "@import" not in style.group(1) and "url(" not in style.group(1)


def test_the_headline_comes_first(folders: list[Path]) -> None:
    page = compare_page(load_runs(folders))
    assert page.index("1.67x") < page.index("<svg") < page.index("<table")
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page


@pytest.mark.browser
def test_a_hostile_run_does_nothing_in_chromium(
    make_run: Callable[..., Path], tmp_path: Path, open_in_browser: Callable[[Path], tuple[str, list[str]]]
) -> None:
    run = make_run(
        "<script>document.title='broken'<", SCRIPT, learning_curve=CURVE, by_popularity={SCRIPT: {"auc": 0.7}}
    )
    file = tmp_path / "page.html"
    file.write_text(compare_page(load_runs([run, make_run("full")]), title=SCRIPT), encoding="utf-8")
    dom, console = open_in_browser(file)
    # Chromium says on its console what the policy blocked: nothing was tried.
    assert console == []
    assert "<script" not in dom and "<title>&lt;script&gt;alert(1)" in dom


@pytest.mark.browser
def test_the_policy_blocks_what_is_put_into_the_page(
    folders: list[Path], tmp_path: Path, open_in_browser: Callable[[Path], tuple[str, list[str]]]
) -> None:
    page = compare_page(load_runs(folders))
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", f"{SCRIPT}<img src='x.png'></body>"), encoding="utf-8")
    _, console = open_in_browser(file)
    assert any("script" in line for line in console) and any("x.png" in line for line in console)


@pytest.mark.browser
def test_chromium_has_nothing_to_say(
    folders: list[Path], tmp_path: Path, open_in_browser: Callable[[Path], tuple[str, list[str]]]
) -> None:
    file = tmp_path / "page.html"
    file.write_text(compare_page(load_runs(folders)), encoding="utf-8")
    dom, console = open_in_browser(file)
    assert console == []
    assert dom.count("<svg") == 3 and "onerror=alert(1)&gt;" in dom
