"""Runs side by side: one definition of the columns for the terminal, HTML and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slipstream.report.columns import GAP, fill, least_width
from slipstream.report.runs import Run, baseline, unlike

if TYPE_CHECKING:
    from rich.table import Table

_NONE = "–"


@dataclass(frozen=True)
class Column:
    """One figure of a run.

    Attributes:
        title: Heading, with the unit.
        text: The figure as text, given the run and the run it is measured against.
        numeric: Whether it is set flush right.
        spare: Where a terminal is too narrow for all columns, those with the highest number go first; with 0 it stays.
    """

    title: str
    text: Callable[[Run, Run], str]
    numeric: bool = True
    spare: int = 0


def _plain(key: str, form: str) -> Callable[[Run, Run], str]:
    def text(run: Run, _: Run) -> str:
        value = run.number(key)
        return _NONE if value is None else format(value, form)

    return text


def _speed(run: Run, base: Run) -> str:
    ours, theirs = run.number("seconds"), base.number("seconds")
    return f"{theirs / ours:.2f}x" if ours and theirs else _NONE


def _difference(key: str) -> Callable[[Run, Run], str]:
    def text(run: Run, base: Run) -> str:
        ours, theirs = run.number(key), base.number(key)
        return _NONE if ours is None or theirs is None or run is base else f"{ours - theirs:+.4f}"

    return text


COLUMNS = (
    Column("run", lambda run, _: run.name, numeric=False),
    Column("policy", lambda run, _: run.policy, numeric=False, spare=5),
    Column("time (s)", _plain("seconds", ".1f")),
    Column("speed-up", _speed),
    Column("NDCG", _plain("ranking.ndcg", ".4f")),
    Column("Δ NDCG", _difference("ranking.ndcg")),
    Column("recall", _plain("ranking.recall", ".4f"), spare=2),
    Column("coverage", _plain("diversity.coverage", ".1%"), spare=6),
    Column("Gini", _plain("diversity.gini", ".3f"), spare=7),
    Column("AUC", _plain("auc", ".4f")),
    Column("Δ AUC", _difference("auc"), spare=1),
    Column("log-loss", _plain("log_loss", ".4f"), spare=3),
    Column("Δ log-loss", _difference("log_loss"), spare=8),
    Column("calibration", _plain("calibration", ".3f"), spare=4),
    Column("inputs trained", _plain("share_of_inputs_trained", ".1%")),
    Column("row updates skipped", _plain("share_of_row_updates_skipped", ".1%")),
    Column("samples/s", _plain("samples_per_second", ",.0f"), spare=9),
)
CSV_FIELDS = (
    "auc",
    "log_loss",
    "calibration",
    "seconds",
    "samples_per_second",
    "share_of_inputs_trained",
    "share_of_row_updates_skipped",
    "seed",
    "commit",
    "ranking.ndcg",
    "ranking.recall",
    "diversity.coverage",
    "diversity.gini",
)


def columns(runs: Sequence[Run]) -> list[Column]:
    """Those of :data:`COLUMNS` that the runs have something to say in."""
    base = baseline(runs)
    return [column for column in COLUMNS if any(column.text(run, base) != _NONE for run in runs)]


def comparison(runs: Sequence[Run]) -> list[list[str]]:
    """One row of texts per run, in the order of :func:`columns`; differences are against :func:`runs.baseline`."""
    base = baseline(runs)
    return [[column.text(run, base) for column in columns(runs)] for run in runs]


def terminal_table(runs: Sequence[Run], *, width: int = 80) -> Table:
    """The comparison for a terminal of ``width`` characters; as many columns as fit whole."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    chosen = columns(runs)
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, GAP - 1, 0, 0),
        pad_edge=False,
        caption=Text(_caption(runs)),
        caption_justify="left",
    )
    texts = comparison(runs)

    def cut(most: int) -> tuple[list[str], list[list[str]]]:
        shown = [place for place, column in enumerate(chosen) if column.spare <= most]
        return [chosen[place].title for place in shown], [[row[place] for place in shown] for row in texts]

    fitting = (
        most for most in range(max(column.spare for column in chosen), 0, -1) if least_width(*cut(most)) <= width
    )
    titles, rows = cut(next(fitting, 0))
    fill(table, titles, rows, width=width, left=range(1 + ("policy" in titles)))
    return table


def _caption(runs: Sequence[Run]) -> str:
    against = f"differences and speed-up against {baseline(runs).name}"
    why = unlike(runs)
    return f"{against}, which mean nothing: the runs {why}" if why else against


def csv_text(runs: Sequence[Run]) -> str:
    """One line per run with its figures unrounded, after a heading line."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["run", "policy", *CSV_FIELDS])
    for run in runs:
        writer.writerow([run.name, run.policy, *(_field(run, field) for field in CSV_FIELDS)])
    return buffer.getvalue()


def _field(run: Run, key: str) -> Any:
    """A value unrounded; nothing where the run has none."""
    found: Any = run.result
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return "" if found is None else found
