"""The code on the pages runs as written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from slipstream.policies import Policy
from slipstream.testing import check_policy

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCKS = [
    pytest.param(page, block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    )
]


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_code_runs_as_written(page: Path, block: str) -> None:
    exec(compile(block, page.name, "exec"), {"__name__": page.stem})


def test_the_policy_on_the_page_is_short_skips_and_stays_whole() -> None:
    (block,) = [entry.values[1] for entry in BLOCKS if entry.values[0].stem == "write_a_policy"]  # type: ignore[union-attr]
    names: dict[str, Any] = {}
    exec(compile(str(block), "write_a_policy.md", "exec"), names)
    made = names["Recent"]
    assert issubclass(made, Policy)
    text = str(block)
    lines = [line for line in text[text.index("class Recent") :].splitlines() if line.strip()]
    assert len(lines) <= 32
    check_policy(lambda: made(share=0.25), budget=0.35, band=0.1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
