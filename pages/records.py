"""What the kept records say, put between marks of a page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slipstream.report.frontier import summary
from slipstream.report.machine import Machine

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
Table = tuple[Mapping[str, str], Sequence[Mapping[str, Any]], str]
"""Columns and what they are called, rows, and what was measured in words."""
_MARK = re.compile(r"(<!-- record (\w+) -->\n).*?(<!-- /record -->)", flags=re.DOTALL)
COLUMNS = {
    "policy": "policy",
    "budget": "kept",
    "AUC": "AUC",
    "to full": "AUC less full training's",
    "calibration": "calibration",
    "seconds": "time (s)",
    "same time": "AUC above random in the same time",
}
RANKED = {
    "policy": "policy",
    "budget": "kept",
    "NDCG": "NDCG@20",
    "to full": "NDCG less full training's",
    "skipped": "row updates skipped",
    "coverage": "coverage",
    "gini": "Gini",
    "seconds": "time (s)",
}
CONTINUED = {
    "policy": "policy",
    "way": "model",
    "AUC": "AUC of the next slice",
    "to full retrained": "less that of full retraining",
    "samples a slice": "samples a slice",
    "seconds a slice": "seconds a slice",
}
"""Figures of a row and what a page calls them: of a frontier, of one of rankings, of a study of new slices."""


def filled_in(text: str) -> str:
    """The page with the table of each record it names."""
    return _MARK.sub(lambda found: found[1] + _table(found[2]) + found[3], text)


def _table(name: str) -> str:
    """A record's rows, means over its seeds, and the conditions they hold under."""
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    columns, rows, said = frontier(record) if name.startswith("frontier") else continued(record)
    words = [[str(cells[column]) for column in columns] for cells in rows]
    aligned = ["---" if column in ("policy", "way") else "---:" for column in columns]
    lines = [f"| {' | '.join(line)} |" for line in (list(columns.values()), *words)]
    lines.insert(1, f"|{'|'.join(aligned)}|")
    machine = Machine.model_validate(record["machine"])
    made = f"{machine.chip}; commit {record['commit']}; `{record['command']}`"
    return "\n".join(lines) + f"\n\nMeans over the seeds: {said}; {made}.\n"


def frontier(record: Mapping[str, Any]) -> Table:
    """A frontier's points."""
    found = summary(record["points"])
    ranked = "NDCG" in found[0]
    figure, columns = ("NDCG", RANKED) if ranked else ("AUC", COLUMNS)
    digits = {figure: 4, "seconds": 2, "calibration": 3, "skipped": 2, "coverage": 3, "gini": 3}
    full = next(row[figure] for row in found if row["policy"] == "none")
    rows = [
        {
            **row,
            "to full": "–" if row["policy"] == "none" else f"{row[figure] - full:+.4f}",
            **{name: f"{row[name]:.{places}f}" for name, places in digits.items() if name in columns},
        }
        for row in found
    ]
    conditions = record["conditions"]
    return columns, rows, f"{conditions['samples']:,} samples, {conditions['seeds']} seeds, {conditions['mode']}"


def continued(record: Mapping[str, Any]) -> Table:
    """What each way to meet new slices costs and reaches."""
    rows = [
        {**row, "AUC": f"{row['AUC']:.4f}", "samples a slice": f"{row['samples a slice']:,}"} for row in record["rows"]
    ]
    said = record["dataset"].partition(", fingerprint")[0]
    return CONTINUED, rows, f"{said}, {record['conditions']['seeds']} seeds"
