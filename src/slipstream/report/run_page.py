"""The page of one run, over or not: where it stands, its figures, drawings, settings, and where it was measured."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from slipstream.report.figures import figures
from slipstream.report.html import origin
from slipstream.report.page import environment, page, table, unreadable
from slipstream.report.runs import Run, settings

_MOVES = 20
"""What the policy decided last."""


def run_page(run: Run, *, title: str | None = None) -> str:
    """A complete HTML document about one run.

    Args:
        run: The run; without a result, it says how far the training has come.
        title: Heading; None: the run's name.
    """
    title = title or f"Slipstream: {run.name}"
    return page(title, [f"<h1>{escape(title)}</h1>", run_body(run)])


def run_body(run: Run) -> str:
    """What the page says under its heading, as HTML."""
    said = origin(run)
    parts = [
        f'<p class="soft">{escape(said)}</p>' if said else "",
        f"<p>{escape(state(run))}</p>",
        _cards(run),
        f'<div class="plots">{"".join(figures([run]))}</div>',
        *_moves(run),
        *environment([run]),
        unreadable([run]),
        *_settings(run),
    ]
    return "\n".join(part for part in parts if part)


def state(run: Run) -> str:
    """Where the training stands, as a sentence."""
    skips = "nothing is skipped" if run.policy == "none" else f"policy {run.policy}"
    if run.finished:
        return f"Finished; {skips}."
    total = run.log.start.total_samples if run.log.start is not None else 0
    if not total:
        return f"Not over, no samples trained on yet; {skips}."
    share = min(run.log.samples / total, 1.0)
    return f"Not over: {run.log.samples:,} of {total:,} samples, {share:.0%}; {skips}."


def key_figures(run: Run) -> Iterator[tuple[str, str, str]]:
    """Name, value and a note for each of the figures that matter most; those the run does not have are left out."""
    log, latest = run.log, run.log.latest_score
    seconds = run.number("seconds") or log.seconds
    auc = run.number("auc") if run.finished else latest.auc if latest else None
    loss = run.number("log_loss") if run.finished else latest.log_loss if latest else None
    scored = run.result.get("samples_scored") if run.finished else latest.samples_scored if latest else None
    of = f"of {scored:,} samples {_where(run)}" if isinstance(scored, int) else ""
    length = run.number("ranking.k")
    if length is not None:
        yield f"NDCG@{length:.0f}", _fixed(run.number("ranking.ndcg"), 4), "of the full catalogue"
    if auc is not None:
        yield "AUC", _fixed(auc, 4), of
    if loss is not None:
        yield "log-loss", _fixed(loss, 4), "nats, less is better"
    calibration = run.number("calibration")
    if calibration is not None:
        yield "calibration", _fixed(calibration, 3), "predicted ÷ observed, 1 is right"
    if seconds:
        samples = run.number("samples_per_second") or log.samples / seconds
        yield "time", f"{seconds:,.1f} s", f"{samples:,.0f} samples/s, scoring not counted"
    last = log.steps[-1] if log.steps else None
    trained, skipped = run.number("share_of_inputs_trained"), run.number("share_of_row_updates_skipped")
    if trained is None and last is not None and last.inputs_seen:
        trained, skipped = last.inputs_kept / last.inputs_seen, last.skipped / max(last.lookups, 1)
    if trained is not None:
        yield "inputs trained", f"{trained:.1%}", f"row updates skipped: {skipped or 0.0:.1%}"


def _where(run: Run) -> str:
    mode = run.config.get("mode")
    return "before they were trained on" if mode == "prequential" else "held out"


def _fixed(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _cards(run: Run) -> str:
    cards = (
        f'<section class="card"><h2>{escape(name)}</h2><p class="headline">{escape(value)}</p>'
        f'<p class="soft">{escape(note)}</p></section>'
        for name, value, note in key_figures(run)
    )
    return f'<div class="cards figures">{"".join(cards)}</div>'


def _moves(run: Run) -> list[str]:
    moves = run.log.moves[-_MOVES:]
    if not moves:
        return []
    rows = [
        [f"{move.seconds:.1f}", ", ".join(f"{key} {_plain(value)}" for key, value in (move.model_extra or {}).items())]
        for move in moves
    ]
    earlier = len(run.log.moves) - len(moves)
    heading = "<h2>What the policy decided</h2>"
    more = f'<p class="soft">The last {len(moves)}; {earlier:,} before them.</p>' if earlier else ""
    return [heading, more, table(["time (s)", "decision"], rows, [True, False])]


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _settings(run: Run) -> list[str]:
    rows = [[name, value] for name, value in settings(run)]
    if not rows:
        return []
    return ["<details><summary>All settings</summary>", table(["setting", "value"], rows, [False, False]), "</details>"]
