"""Rewrites README's table of figures from the kept records: ``python -m slipstream.report.readme README.md DIR``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from slipstream.data.atomic import write_text
from slipstream.errors import ConfigError, DataError, SlipstreamError
from slipstream.report.headlines import HEADLINES, Headline
from slipstream.report.peers import PREFIX, peers_table
from slipstream.report.record import Record

BEGIN = "<!-- results: made by `make results` from benchmarks/results, not by hand -->"
END = "<!-- /results -->"


def render(folder: Path, headlines: Sequence[Headline] = HEADLINES) -> str:
    """The tables as Markdown: ours against peers, then a line for every headline whose record is kept.

    Args:
        folder: Holds records, ``*.json``. Those of ``--quick`` runs are left out: they are not for quoting.
        headlines: The lines.

    Raises:
        DataError: A record is none, or lacks a figure that a headline names.
    """
    records = {file.stem: Record.load(file) for file in sorted(folder.glob("*.json"))}
    records = {name: record for name, record in records.items() if not record.conditions.get("quick")}
    kept = [line for line in headlines if line.record in records]
    beside = [(folder / f"{name}.json", record) for name, record in records.items() if name.startswith(PREFIX)]
    if not kept and not beside:
        return "No figures yet: `make bench-kernels` and its like write them to `benchmarks/results/`.\n"
    machines = {
        f"{machine.chip}, {machine.memory_gib:g} GiB": None
        for machine in (record.machine for record in records.values())
    }
    head = "| what | against | faster by | quality, same run |\n|---|---|---:|---|\n"
    note = (
        f"\nMeasured on {'; '.join(machines)}, not elsewhere. Each ratio links to its record: versions, commit,"
        " conditions, spread and the command. [All figures](docs/results.html), with those that fall short.\n"
    )
    lines = (_line(line, records[line.record], folder / f"{line.record}.json") for line in kept)
    return peers_table(beside) + head + "".join(lines) + note


def _line(headline: Headline, record: Record, file: Path) -> str:
    sat_out = "left out" in record.conditions  # a system that this machine cannot run, which the record names
    try:
        ratios = " / ".join(
            "–" if sat_out and key not in record.ratios else f"{record.ratios[key]:.2f}x" for key in headline.ratios
        )
        figures = [
            (record.quality[key], words) for key, words in headline.quality if key in record.quality or not sat_out
        ]
        quality = ", ".join(f"{words} {_figure(figure)}" for figure, words in figures)
    except KeyError as error:
        remedy = "measure it again, or mend slipstream.report.headlines"
        raise DataError(f"README quotes {error} from it, which it lacks", file=file, remedy=remedy) from error
    return f"| {headline.what} | {headline.against} | [{ratios}](benchmarks/results/{file.name}) | {quality} |\n"


def _figure(value: float) -> str:
    """Four digits after the point for shares and AUC, none for what is counted in thousands, an exponent for traces."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-4 else f"{value:.1e}"


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
