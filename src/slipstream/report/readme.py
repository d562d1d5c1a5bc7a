"""Rewrites README's table of figures from the kept records: ``python -m slipstream.report.readme README.md DIR``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from slipstream.data.atomic import write_text
from slipstream.errors import ConfigError, DataError, SlipstreamError
from slipstream.report.machine import Machine
from slipstream.report.peers import PREFIX, peers_table
from slipstream.report.record import Record
from slipstream.report.runs import REQUIRED

BEGIN = "<!-- results: made by `make results` from benchmarks/results, not by hand -->"
END = "<!-- /results -->"


def render(folder: Path) -> str:
    """The tables as Markdown: ours against peers, then a line for every other ratio, with conditions and quality.

    Args:
        folder: Holds records and kept results of trainings, ``*.json``. Records of ``--quick`` runs are left out: they
            are not for quoting.

    Raises:
        DataError: If a file there is neither.
    """
    lines: list[str] = []
    machines: list[str] = []
    beside: list[tuple[Path, Record]] = []
    for file in sorted(folder.glob("*.json")):
        entry = _training(file) or _benchmark(file)
        if entry is None:
            continue
        machine = f"{entry.machine.processor}, {entry.machine.cores} cores, {entry.machine.memory_gib:g} GiB"
        if machine not in machines:
            machines.append(machine)
        if file.name.startswith(PREFIX):
            beside.append((file, Record.load(file)))
        else:
            lines += _lines(entry)
    if not lines and not beside:
        return "No figures yet: `make bench-kernels` and its like write them to `benchmarks/results/`.\n"
    head = "| benchmark | figure | value | quality in the same run | conditions |\n|---|---|---:|---|---|\n"
    note = (
        "\nRatios (x) are ours against the peer named, above 1 is faster; each line links to its record with versions,"
        f" commit, spread and command. Measured on {'; '.join(machines)}; not measured elsewhere.\n"
    )
    return peers_table(beside) + head + "".join(lines) + note


@dataclass(frozen=True)
class _Entry:
    file: Path
    name: str
    machine: Machine
    figures: Mapping[str, str]
    quality: Mapping[str, float]
    conditions: Mapping[str, Any]


def _benchmark(file: Path) -> _Entry | None:
    record = Record.load(file)
    if record.conditions.get("quick"):
        return None
    ratios = {name: f"{ratio:.2f}x" for name, ratio in record.ratios.items()}
    return _Entry(file, record.name, record.machine, ratios, record.quality, record.conditions)


def _training(file: Path) -> _Entry | None:
    """A kept ``result.json``, None if the file is something else."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"not JSON ({error})", file=file) from error
    if not isinstance(result, dict) or not {*REQUIRED, "machine"} <= result.keys():
        return None
    try:
        machine = Machine.model_validate(result["machine"])
    except ValidationError as error:
        raise DataError("its machine is not described", file=file) from error
    figures = {"samples/s": f"{result['samples_per_second']:,.0f}"}
    quality = {name: result[name] for name in ("auc", "log_loss")}
    conditions = {name: result[name] for name in ("model", "policy", "mode", "samples", "seed") if name in result}
    return _Entry(file, file.stem, machine, figures, quality, conditions)


def _lines(entry: _Entry) -> list[str]:
    name = f"[{_cell(entry.name)}](benchmarks/results/{entry.file.name})"
    quality = ", ".join(f"{_cell(key)} {_figure(value)}" for key, value in entry.quality.items())
    conditions = ", ".join(
        f"{_cell(key)} {_cell(value)}" for key, value in entry.conditions.items() if _is_short(value)
    )
    figures = entry.figures or {"": ""}
    # Quality and conditions are the record's, once.
    rest = [f"| {quality} | {conditions} |", *["| | |"] * (len(figures) - 1)]
    return [
        f"| {name} | {_cell(key)} | {value} {end}\n" for (key, value), end in zip(figures.items(), rest, strict=True)
    ]


def _is_short(value: Any) -> bool:
    return isinstance(value, str | int | float) and value is not False and len(str(value)) <= 60


def _figure(value: float) -> str:
    """Four digits after the point for shares and AUC, none for what is counted in thousands, an exponent for traces."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("_", " ")


def rewrite(readme: str, table: str) -> str:
    """README with the table between its two marks replaced.

    Raises:
        ConfigError: If the marks are not there, once each and in order.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ConfigError("README lacks the marks of its table of figures", remedy=f"put {BEGIN} and {END} into it")
    return f"{before}{BEGIN}\n{table}{END}{after}"


def main(arguments: Sequence[str]) -> None:
    """Rewrite the table.

    Args:
        arguments: Path of README and of the folder of records.
    """
    if len(arguments) != 2:
        raise ConfigError("expected README.md and the folder of records")
    readme = Path(arguments[0])
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", file=readme) from error
    write_text(readme, rewrite(text, render(Path(arguments[1]))))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SlipstreamError as error:
        sys.exit(str(error))
