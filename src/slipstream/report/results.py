"""The page of all kept records: ``python -m slipstream.report.results docs/results.html benchmarks/results``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from slipstream.data.atomic import write_text
from slipstream.errors import ConfigError, DataError, SlipstreamError
from slipstream.report import plots
from slipstream.report.frontier_page import section
from slipstream.report.page import figure, measured, page, table
from slipstream.report.record import Record

TITLE = "Slipstream: what was measured"
_DRAWN = 24
"""Ratios of one drawing."""
_LISTED = 80
"""Rows that a table shows; the record has them all."""
_OPEN = 12
"""Rows of a table that is shown without being asked for."""
_PARTS = {
    "rows": "rows of all tables",
    "samples": "samples",
    "features": "features",
    "positives": "share of positives",
    "beyond": "rows of all tables, in files up to beyond memory",
}
"""Parts of the record ``scale``, with the label of their axis."""


def results_page(records: Mapping[str, Record]) -> str:
    """One page of all records: ratios, curves and frontiers, with the conditions of each.

    Args:
        records: At least one, by file name. Those of ``--quick`` runs are left out: they are not for quoting.

    Returns:
        A complete HTML document.
    """
    kept = {name: record for name, record in records.items() if not record.conditions.get("quick")}
    links = (f'<li><a href="#{_anchor(name)}">{escape(_title(name))}</a></li>' for name in kept)
    parts = [
        f"<h1>{escape(TITLE)}</h1>",
        '<p class="soft">Made from the records in benchmarks/results by <code>make results</code>; nobody types '
        "numbers into it. A ratio is ours against the peer named, in the same run, above 1 is faster; in "
        "<em>limit</em> it is the time measured ÷ the machine's lower bound, 1 being the limit, and in <em>scale</em> "
        "the cost per sample at the larger size ÷ at the smaller, 1 being no growth.</p>",
        table(
            ["benchmark", "date", "commit", "machine"],
            [[_title(name), record.date[:10], record.commit or "–", _machine(record)] for name, record in kept.items()],
            [False] * 4,
        ),
        f"<ul>{''.join(links)}</ul>",
    ]
    for name, record in kept.items():
        parts += _section(name, record)
    return page(TITLE, parts)


def _section(name: str, record: Record) -> list[str]:
    if record.points and {"policy", "budget", "seconds"} <= record.points[0].keys():
        return section(record, _title(name), _anchor(name))
    drawn = "".join(figure(caption, picture) for caption, picture in _figures(_title(name), record))
    parts = [
        f'<h2 id="{_anchor(name)}">{escape(_title(name))}</h2>',
        f'<p class="soft">{escape(record.dataset)}</p>',
        f'<p class="soft">{escape(_conditions(record))}.</p>',
        measured(record),
        f'<div class="plots">{drawn}</div>' if drawn else "",
    ]
    if record.ratios:
        rows = [[_title(key), f"{value:.2f}x"] for key, value in record.ratios.items()]
        parts.append(_folded("ratios", table(["ratio", "value"], rows, [False, True]), len(rows)))
    if record.quality:
        rows = [[_title(key), _cell(value)] for key, value in record.quality.items()]
        parts.append(_folded("in the same run", table(["in the same run", "value"], rows, [False, True]), len(rows)))
    for caption, rows in (("measurements", record.rows), ("points", record.points)):
        if rows:
            parts.append(_folded(caption, _rows(rows), len(rows), least=0))
    return parts


def _folded(caption: str, body: str, count: int, *, least: int = _OPEN) -> str:
    """A table of so many rows, folded away where they are more than ``least``."""
    return body if count <= least else f"<details><summary>{caption}: {count}</summary>{body}</details>"


def _figures(title: str, record: Record) -> Iterator[tuple[str, str]]:
    """A record's drawings, each with its caption."""
    if record.name == "scale":
        yield from _curves(title, record)
    named = [(_title(key).removesuffix("/bound"), value) for key, value in record.ratios.items() if value > 0.0]
    for start in range(0, len(named), _DRAWN):
        some = dict(named[start : start + _DRAWN])
        label = {"limit": "time measured ÷ bound", "scale": "growth"}.get(record.name, "ours against the peer")
        yield f"{title}: ratios", plots.ratios(some, x=label, name=f"{title} ratios {start}")
    if record.name == "profile_step":
        yield from _profile(title, record)


def _curves(title: str, record: Record) -> Iterator[tuple[str, str]]:
    for part, axis in _PARTS.items():
        series: dict[str, list[tuple[float, float]]] = {}
        for row in record.rows:
            if row["part"] == part and "size" in row:
                series.setdefault(row["series"], []).append((float(row["size"]), float(row["p50"])))
        drawn = {
            label: tuple(map(list, zip(*sorted(points), strict=True))) for label, points in series.items() if points
        }
        if drawn:
            yield (
                f"Cost per sample against {axis}",
                plots.curves(drawn, x=axis, y="seconds a sample", name=f"{title} {part}"),  # type: ignore[arg-type]
            )


def _profile(title: str, record: Record) -> Iterator[tuple[str, str]]:
    """The largest operators of each step, as shares."""
    systems = dict.fromkeys(row["system"] for row in record.rows)
    for system in systems:
        found = [row for row in record.rows if row["system"] == system and row.get("kind") == "torch"][:8]
        if found:
            shares = {str(row["where"]).removeprefix("aten::"): float(row["share"]) for row in found}
            yield f"{system}: share of torch's operators", plots.shares(shares, name=f"{title} {system}")


def _rows(rows: Sequence[Mapping[str, Any]]) -> str:
    titles = list(dict.fromkeys(key for row in rows for key, value in row.items() if _is_short(value)))
    numeric = [all(isinstance(row.get(title, 0), int | float) for row in rows) for title in titles]
    shown = [[_cell(row.get(title, "")) for title in titles] for row in rows[:_LISTED]]
    more = "" if len(rows) <= _LISTED else f'<p class="soft">The first {_LISTED}; the record has all.</p>'
    return table(titles, shown, numeric) + more


def _conditions(record: Record) -> str:
    short = {key: value for key, value in record.conditions.items() if _is_short(value) and value is not False}
    return ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in short.items())


def _is_short(value: Any) -> bool:
    return isinstance(value, int | float | str)


def _machine(record: Record) -> str:
    machine = record.machine
    return f"{machine.chip}, {machine.memory_gib:g} GiB, threads {machine.threads or '–'}"


def _title(name: str) -> str:
    return name.replace("_", " ")


def _anchor(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def load(folder: Path) -> dict[str, Record]:
    """All records of a folder, by file name without ending.

    Raises:
        DataError: There is none, or a file is something else.
    """
    records = {file.stem: Record.load(file) for file in sorted(folder.glob("*.json"))}
    if not records:
        raise DataError("no records", file=folder, remedy="make one: `make bench-kernels`")
    return records


def main(arguments: Sequence[str]) -> None:
    """Write the page.

    Args:
        arguments: Path of the page, and of the folder of records.
    """
    if len(arguments) != 2:
        raise ConfigError("expected the page and the folder of records")
    write_text(Path(arguments[0]), results_page(load(Path(arguments[1]))))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SlipstreamError as error:
        sys.exit(str(error))
