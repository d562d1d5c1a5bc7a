"""Reference pages made from the command line, the configuration and the kept records; a test compares them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pages import api, commands, configuration, records

DOCS = Path(__file__).parents[1] / "docs"
NOTE = "<!-- Made by `make pages`, not by hand. -->\n\n"
WHOLE: dict[str, Callable[[], str]] = {
    "reference/cli.md": commands.page,
    "reference/configuration.md": configuration.page,
    **{f"reference/api/{name}.md": text for name, text in api.pages().items()},
}
"""Pages by their place in docs/."""


def rendered() -> dict[Path, str]:
    """What each made page should hold."""
    found = {DOCS / name: NOTE + make() for name, make in WHOLE.items()}
    for page in (DOCS / "when_it_does_not_help.md", DOCS / "howto" / "new_days.md", DOCS / "howto" / "rank_items.md"):
        found[page] = records.filled_in(page.read_text(encoding="utf-8"))
    return found


def write() -> None:
    """Write them."""
    for file, text in rendered().items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
