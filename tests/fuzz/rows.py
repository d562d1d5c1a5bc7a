"""What a record of fuzzing knows of each target: a row of the present source, and one of all sources before it.

A row has the commit at which it was last added to, and its source, which is git's hash of the package's folder. When
the source changes, by the mend of a finding say, its row is added to the one of the sources before: fuzzing goes on
with the program, and the minutes of both count.
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


EARLIER = "earlier"
"""The source of a row that stands for all sources before the present one."""


def kept(path: Path, source: str | None) -> tuple[dict[str, Row], dict[str, Row]]:
    """The rows of a record by target: those of this source, and the sums of all others."""
    record = Record.load(path) if path.exists() else Record(name="fuzz")
    present, earlier = dict[str, Row](), dict[str, Row]()
    for row in record.rows if record.name == "fuzz" else []:
        name = row["target"]
        if source is not None and row.get("source") == source:
            present[name] = row
        else:
            earlier[name] = _sum(earlier.get(name), row)
    return present, earlier


def _sum(before: Row | None, row: Row) -> Row:
    """A row of all sources before the present one, with another such row added."""
    keys = ("inputs", MINUTES, "findings")
    sums = {key: round(row[key] + (before or {}).get(key, 0), 3) for key in keys}
    return {"target": row["target"], "commit": row["commit"], "source": EARLIER, **sums}


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


def minutes_of(rows: Iterable[Mapping[str, Row]], name: str) -> float:
    """The processor minutes of a target in all its rows."""
    return sum((of[name][MINUTES] for of in rows if name in of), 0.0)


def summed_up(record: Record, present: Mapping[str, Row], earlier: Mapping[str, Row]) -> Record:
    """The record with these rows, in the order of the targets."""
    record.rows = [rows[name] for name in NAMES for rows in (earlier, present) if name in rows]
    record.quality = {key: round(sum(row[key] for row in record.rows), 3) for key in ("inputs", MINUTES, "findings")}
    names = {row["target"] for row in record.rows}

    def least(*rows: Mapping[str, Row]) -> float:
        return round(min((minutes_of(rows, name) for name in names), default=0.0), 3)

    record.conditions |= {
        "targets": len(names),
        "least_processor_minutes": least(present, earlier),
        "least_processor_minutes_of_this_source": least(present),
        "findings_mended": sum(row["findings"] for row in earlier.values()),
    }
    return record
