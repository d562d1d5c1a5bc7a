"""A page in the project's style: one file, nothing loaded from elsewhere, every text from a run escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape
from importlib import resources
from typing import Any

from slipstream.report.record import Record
from slipstream.report.runs import Run


def stylesheet() -> str:
    """The one style of all pages."""
    return "\n" + resources.files("slipstream.report").joinpath("page.css").read_text(encoding="utf-8")


def content_policy(script: str = "") -> str:
    """The content-security policy of a page: nothing may be loaded or run, whatever a run's name or a setting holds.

    Args:
        script: The page's own script, if it has one: it alone may run, and connect to where the page came from.
    """
    rules = ["default-src 'none'", f"style-src {_hash(stylesheet())}", "img-src data:"]
    rules += ["base-uri 'none'", "form-action 'none'"]
    if script:
        rules += [f"script-src {_hash(script)}", "connect-src 'self'"]
    return "; ".join(rules)


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def page(title: str, parts: Sequence[str], *, script: str = "") -> str:
    """A complete HTML document in the project's style.

    Args:
        title: Its title, plain text.
        parts: The body, as HTML.
        script: Run at its end; only for a page that a server of ours hands out.
    """
    style, policy = stylesheet(), content_policy(script)
    ran = f"<script>{script}</script>" if script else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{style}</style></head>
<body>
{chr(10).join(parts)}
{ran}</body></html>
"""


def measured(record: Record) -> str:
    """On which machine a record was made, of which commit, when and by which command: one soft paragraph."""
    machine = f"{record.machine.chip}, {record.machine.threads} threads"
    said = "; ".join([machine, f"commit {record.commit or '–'}", record.date, record.command])
    return f'<p class="soft">{escape(said)}</p>'


def figure(caption: str, svg: str) -> str:
    """A drawing with its caption."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    """A table that scrolls sideways where it is too wide; ``numeric`` columns are set flush right."""

    def cell(text: str, number: bool, *, head: bool = False) -> str:
        tag = "th" if head else "td"
        shape = ' class="number"' if number else ' class="wrap"' if len(text) > 40 else ""
        return f"<{tag}{shape}>{escape(text)}</{tag}>"

    heads = "".join(cell(text, number, head=True) for text, number in zip(titles, numeric, strict=True))
    body = "".join(
        "<tr>"
        + "".join(
            cell(text, number, head=place == 0) for place, (text, number) in enumerate(zip(row, numeric, strict=True))
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def environment(runs: Sequence[Run]) -> list[str]:
    """Where runs were measured: machine, versions, commit."""
    rows = [
        [
            run.name,
            _words(run.result.get("machine") or (run.log.start and run.log.start.machine)),
            _words(run.result.get("versions")),
            str(run.result.get("commit") or (run.log.start and run.log.start.commit) or "–"),
        ]
        for run in runs
    ]
    return ["<h2>Measured on</h2>", table(["run", "machine", "versions", "commit"], rows, [False] * 4)]


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    return "–" if value is None else str(value)


def unreadable(runs: Sequence[Run]) -> str:
    """Lines of ``metrics.jsonl`` that were passed over, if there are any."""
    lines = ", ".join(f"{run.log.unreadable:,} of {run.name}" for run in runs if run.log.unreadable)
    return f'<p class="soft">Lines of metrics.jsonl that could not be read: {escape(lines)}.</p>' if lines else ""
