from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.report.test_html import SCRIPT, _Parser

from slipstream.errors import ConfigError, DataError
from slipstream.report.record import Record
from slipstream.report.results import load, main, results_page

HOSTILE = f'{SCRIPT}"\'>&--><style>*{{}}</style><img src=x onerror=alert(1)> style="fill:url(http://x)" $x$'
KEPT = Path(__file__).parents[2] / "benchmarks" / "results"


def _curve(part: str, series: str = "training") -> list[dict[str, object]]:
    return [
        {"part": part, "series": series, "size": 10**k, "p20": 1e-6, "p50": 1e-6 * k, "p80": 1e-5} for k in (5, 6, 7)
    ]


def _frontier() -> list[dict[str, object]]:
    points: list[dict[str, object]] = []
    for policy, budget, auc in (("none", 1.0, 0.8), ("random", 0.5, 0.78), ("importance", 0.5, 0.79)):
        points += [
            {"policy": policy, "budget": budget, "seed": seed, "seconds": 10.0 * budget, "auc": auc + seed / 1000}
            | {"log_loss": 0.4, "calibration": 1.0, "share_of_inputs_trained": budget}
            | {"share_of_row_updates_skipped": 0.0, "by_popularity": {}}
            for seed in range(2)
        ]
    return points


class _Attributes(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {name for name, _ in attrs}


@pytest.fixture
def records() -> dict[str, Record]:
    return {
        "limit": Record(name="limit", ratios={"step_float32/bound": 1.5, HOSTILE: 2.5}, quality={HOSTILE: 1.0}),
        "scale": Record(
            name="scale",
            rows=[*_curve("rows", HOSTILE), *_curve("samples"), {"part": "overhead", "series": "step", "p50": 1.0}],
            ratios={"training/1e6_to_1e8": 1.1},
        ),
        "profile_step": Record(
            name="profile_step",
            rows=[{"system": "step", "kind": "torch", "where": HOSTILE, "share": 0.9}],
        ),
        "peers": Record(
            name=HOSTILE,
            dataset=HOSTILE,
            commit=HOSTILE,
            command=HOSTILE,
            conditions={HOSTILE: HOSTILE},
            rows=[{HOSTILE: 1}],
        ),
    }


def test_the_page_is_whole_escaped_and_refers_to_nothing_outside(records: dict[str, Record]) -> None:
    page = results_page({**records, HOSTILE: Record(name="x", ratios={"a": 1.0})})
    parser = _Parser()
    parser.feed(page)
    assert parser.open == []
    assert not {"script", "img", "iframe", "object"} & set(parser.tags) and parser.tags.count("style") == 1
    assert all(address.startswith(("#", "data:")) for address in parser.addresses)
    assert len(set(parser.ids)) == len(parser.ids)
    targets = {address[1:] for address in parser.addresses if address.startswith("#")}
    assert targets | set(re.findall(r"url\(#([^)]*)\)", page)) <= set(parser.ids)
    assert SCRIPT not in page and "default-src 'none'" in page
    attributes = _Attributes()
    attributes.feed(page)
    assert "style" not in attributes.names  # a strict policy would not let it count


def test_every_kind_of_record_is_drawn(records: dict[str, Record]) -> None:
    page = results_page(records)
    # limit's ratios; scale's two parts and ratios; the profile's operators.
    assert page.count("<svg") == 1 + 3 + 1
    assert "1.50x" in page and "time measured ÷ bound" in page and "Cost per sample against rows" in page


def test_a_frontier_is_drawn_as_one() -> None:
    page = results_page({"frontier_globo": Record(name="frontier", dataset="globo", points=_frontier())})
    assert "AUC against time" in page and 'id="frontier-globo"' in page


def test_quick_records_are_left_out() -> None:
    page = results_page({"step": Record(name="step", ratios={"torch": 7.77}, conditions={"quick": True})})
    assert "7.77" not in page


def test_the_kept_records_make_a_page() -> None:
    page = results_page(load(KEPT))
    parser = _Parser()
    parser.feed(page)
    assert parser.open == [] and len(set(parser.ids)) == len(parser.ids)


def test_the_page_is_written_or_the_error_says_why(tmp_path: Path, records: dict[str, Record]) -> None:
    with pytest.raises(DataError, match="no records"):
        main([str(tmp_path / "page.html"), str(tmp_path)])
    with pytest.raises(ConfigError, match="the page and the folder"):
        main([str(tmp_path)])
    records["limit"].save(tmp_path / "limit.json")
    main([str(tmp_path / "page.html"), str(tmp_path)])
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    (tmp_path / "broken.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"broken\.json"):
        main([str(tmp_path / "page.html"), str(tmp_path)])


@pytest.mark.browser
def test_chromium_has_nothing_to_say(
    records: dict[str, Record], tmp_path: Path, open_in_browser: Callable[[Path], tuple[str, list[str]]]
) -> None:
    file = tmp_path / "page.html"
    file.write_text(results_page(records), encoding="utf-8")
    dom, console = open_in_browser(file)
    assert console == []
    assert "<script" not in dom and dom.count("<svg") == 5
