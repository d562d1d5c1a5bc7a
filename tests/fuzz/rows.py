"""What a record of fuzzing knows of each target: a row of the present source, and one of an older source that has more.

A row has the commit at which it was last added to, and its source, which is git's hash of the package's folder:
minutes add up on one source, through commits that leave it alone. A row of an older source stays, with its commit,
until one of the present source has as many minutes or a finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.fuzz.campaign import Outcome
from tests.fuzz.targets import NAMES

import slipstream
from slipstream.report.machine import git
from slipstream.report.record import Record

DONE = 0.999
"""Share of the minutes from which on a target counts as done."""
MINUTES = "processor minutes"
Row = dict[str, Any]


def present_source() -> str | None:
    """Git's hash of the package's folder; None if a file of it differs, or it is not in a repository."""
    folder = Path(slipstream.__file__).parent
    changed = git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return git(folder, "rev-parse", "HEAD:./") if changed == "" else None


def kept(path: Path, source: str | None) -> tuple[dict[str, Row], dict[str, Row]]:
    """The rows of a record by target: those of this source, and of any other that which has most minutes."""
    record = Record.load(path) if path.exists() else Record(name="fuzz")
    rows = sorted(record.rows, key=lambda row: row[MINUTES]) if record.name == "fuzz" else []
    present = {row["target"]: row for row in rows if source is not None and row.get("source") == source}
    return present, {row["target"]: row for row in rows if row not in present.values()}


def added(row: Row | None, outcome: Outcome, commit: str | None, source: str | None) -> Row:
    """The row of a target after what was done now."""
    before = row or {"inputs": 0, MINUTES: 0.0, "findings": 0}
    after: Row = {
        "target": outcome.name,
        "commit": commit,
        "source": source,
        "inputs": before["inputs"] + outcome.inputs,
        MINUTES: round(before[MINUTES] + outcome.seconds / 60, 3),
        "findings": before["findings"] + (outcome.finding is not None),
    }
    said = outcome.finding or before.get("finding")
    return after | ({"finding": said} if said else {})


def most(rows: Iterable[Mapping[str, Row]], name: str) -> float:
    """The processor minutes of a target in the row that has most of them."""
    return max((of[name][MINUTES] for of in rows if name in of), default=0.0)


def summed_up(record: Record, present: Mapping[str, Row], older: Mapping[str, Row]) -> Record:
    """The record with these rows, in the order of the targets, without those of an older source made up for."""

    def replaced(row: Row) -> bool:
        new = present.get(row["target"], {MINUTES: 0.0, "findings": 0})
        return bool(new["findings"]) or new[MINUTES] >= DONE * row[MINUTES]

    older = {name: row for name, row in older.items() if not replaced(row)}
    record.rows = [rows[name] for name in NAMES for rows in (older, present) if name in rows]
    record.quality = {key: round(sum(row[key] for row in record.rows), 3) for key in ("inputs", MINUTES, "findings")}
    names = {row["target"] for row in record.rows}
    record.conditions |= {
        "targets": len(names),
        "least_processor_minutes": min((most((present, older), name) for name in names), default=0.0),
        "rows_of_older_source": len(older),
    }
    return record
