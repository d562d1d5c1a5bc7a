"""What the kept records say, put between marks of a page."""

from __future__ import annotations

import json
import re
from pathlib import Path

from slipstream.report.machine import Machine

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
_MARK = re.compile(r"(<!-- record (\w+) -->\n).*?(<!-- /record -->)", flags=re.DOTALL)
COLUMNS = ("policy", "budget", "AUC", "to full", "calibration", "seconds", "same time")
TITLES = (
    "policy",
    "kept",
    "AUC",
    "AUC less full training's",
    "calibration",
    "time (s)",
    "AUC above random in the same time",
)


def filled_in(text: str) -> str:
    """The page with the table of each record it names."""
    return _MARK.sub(lambda found: found[1] + frontier(found[2]) + found[3], text)


def frontier(name: str) -> str:
    """A frontier's points, means over its seeds, and the conditions they hold under."""
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    full = next(row["AUC"] for row in record["rows"] if row["policy"] == "none")
    lines = [f"| {' | '.join(TITLES)} |", "|---|---:|---:|---:|---:|---:|---:|"]
    for row in record["rows"]:
        gap = "–" if row["policy"] == "none" else f"{row['AUC'] - full:+.4f}"
        cells = {**row, "to full": gap, "AUC": f"{row['AUC']:.4f}", "seconds": f"{row['seconds']:.2f}"}
        cells["calibration"] = f"{row['calibration']:.3f}"
        lines.append(f"| {' | '.join(str(cells[column]) for column in COLUMNS)} |")
    conditions, machine = record["conditions"], Machine.model_validate(record["machine"])
    said = f"{conditions['samples']:,} samples, {conditions['seeds']} seeds, {conditions['mode']}"
    made = f"{machine.chip}; commit {record['commit']}; `{record['command']}`"
    return "\n".join(lines) + f"\n\nMeans over the seeds: {said}; {made}.\n"
