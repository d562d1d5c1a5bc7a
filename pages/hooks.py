"""Run by mkdocs: a link that leads out of docs/ (to an example, a record) becomes the file's name."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called with the text of each page."""
    depth = len(PurePosixPath(page.file.src_uri).parents) - 1

    def shown(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        ups = len(re.findall(r"\.\./", target))
        return link[0] if ups <= depth else f"{text} (`{target.replace('../', '')}`)"

    return _LINK.sub(shown, markdown)
