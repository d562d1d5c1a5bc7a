"""The code on the pages runs as written."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from pages import made
from tests.docs.blocks import NOT_RUN, blocks, provide, run_page

from slipstream.policies import Policy
from slipstream.testing import check_policy

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
STORIES = [page for page in PAGES if any(block.language == "bash" and block.runs for block in blocks(page))]
"""Pages that are run from top to bottom, since their commands build on each other."""
BLOCKS = [
    pytest.param(page, block.text, id=f"{page.stem}-{number}")
    for page in PAGES
    if page not in STORIES
    for number, block in enumerate(block for block in blocks(page) if block.language == "python" and block.runs)
]


OPTIONAL = ("accelerate", "lightning")
"""Packages that a page is about and that the tests' environment need not have."""


@pytest.mark.parametrize(("page", "block"), BLOCKS)
@pytest.mark.filterwarnings("ignore")
def test_code_runs_as_written(page: Path, block: str) -> None:
    for package in OPTIONAL:
        if re.search(rf"^(import|from) {package}\b", block, flags=re.MULTILINE):
            pytest.importorskip(package)
    exec(compile(block, page.name, "exec"), {"__name__": page.stem})


@pytest.mark.parametrize("page", STORIES, ids=lambda page: page.name)
@pytest.mark.filterwarnings("ignore")
def test_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    provide(tmp_path)
    run_page(page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_not_run_says_why(page: Path) -> None:
    for block in blocks(page):
        if block.title.startswith(NOT_RUN):
            assert len(block.title) > len(NOT_RUN) + 10
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    commands = re.findall(r"^    (?:slipstream|pip|make|python|torchrun) .*$", prose, flags=re.MULTILINE)
    assert commands == [], "a command in an indented block is not run: fence it"


def test_made_pages_are_those_of_the_code() -> None:
    """``make pages`` writes them."""
    for file, text in made.rendered().items():
        assert file.read_text(encoding="utf-8") == text, f"{file.name}: make pages"


def test_pictures_are_small() -> None:
    pictures = sorted((ROOT / "docs" / "images").iterdir())
    assert pictures
    assert all(picture.stat().st_size < 200_000 for picture in pictures)


def test_every_setting_has_a_text() -> None:
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    bare = re.findall(r"^\| `([\w.]+)` \| .* \|  \|$", page, flags=re.MULTILINE)
    assert [name for name in bare if not name.endswith(".name")] == []


def test_figures_and_recipes_on_the_page_are_those_of_the_files() -> None:
    """``python -m examples.page`` writes them."""
    source = (ROOT / "examples" / "page.py").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "page", "__file__": str(ROOT / "examples" / "page.py")}
    exec(compile(source, "page.py", "exec"), names)
    text = names["PAGE"].read_text(encoding="utf-8")
    assert names["rendered"](text) == text


@pytest.mark.parametrize("recipe", sorted((ROOT / "examples").glob("*/recipe.py")), ids=lambda path: path.parent.name)
def test_recipes_are_short(recipe: Path) -> None:
    """No function of a recipe has more than 15 lines of code."""
    tree = ast.parse(recipe.read_text(encoding="utf-8"))
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        assert (function.end_lineno or 0) - function.body[0].lineno <= 15, function.name


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", prose):
        assert (page.parent / target.partition("#")[0]).exists(), target
