"""The comparison page: one file, no scripts, nothing loaded from elsewhere, every text from a run escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from slipstream.report import plots
from slipstream.report.figures import figures, outcome
from slipstream.report.page import environment, page, table, unreadable
from slipstream.report.runs import Measure, Run, baseline, differing_settings, measure, unlike
from slipstream.report.table import columns, comparison


def compare_page(runs: Sequence[Run], *, title: str = "Slipstream: runs compared") -> str:
    """A page that sets runs side by side: figures, plots, settings that differ, where it was measured.

    Args:
        runs: At least one run, the first without skipping being what the others are measured against.
        title: Heading of the page.

    Returns:
        A complete HTML document.
    """
    base = baseline(runs)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(origin(base))}</p>',
        f"<p>The runs {why}: differences between them mean nothing.</p>" if (why := unlike(runs)) else "",
        _cards(runs),
        '<p class="soft">One run of each: differences of the size of run-to-run spread mean nothing; repeat with other '
        "seeds.</p>",
        f'<div class="plots">{outcome(runs)}{"".join(figures(runs))}</div>',
        "<h2>Figures</h2>",
        f'<p class="soft">Speed-up and differences (Δ) are against {escape(base.name)}.</p>',
        table(
            [column.title for column in columns(runs)], comparison(runs), [column.numeric for column in columns(runs)]
        ),
        "<h2>In words</h2>" if findings(runs) else "",
        f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in findings(runs))}</ul>",
        *_settings(runs),
        *environment(runs),
        unreadable(runs),
    ]
    return page(title, parts)


def _cards(runs: Sequence[Run]) -> str:
    """The headline: for each run its speed against the baseline, and what that costs in AUC or NDCG."""
    base = baseline(runs)
    cards = (_card(run, base, runs, number % plots.SERIES) for number, run in enumerate(runs))
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(run: Run, base: Run, runs: Sequence[Run], colour: int) -> str:
    by = measure(runs)
    seconds, quality = run.number("seconds") or 0.0, run.number(by.key)
    took = f"{seconds:,.1f} s" if seconds < 1000 else f"{seconds:,.0f} s"
    if run is base:
        figure, notes = took, [(by.title, "–" if quality is None else f"{quality:.4f}")]
    else:
        figure = f"{(base.number('seconds') or 0.0) / seconds:.2f}x" if seconds else "–"
        notes = [(f"Δ {by.title}", _difference(run, base, by)), ("time", took)]
        control = _control(run, runs)
        if control is not None:
            notes.append((f"Δ {by.title} to {control.name}", _difference(run, control, by)))
    said = "the others are measured against it" if run is base else f"the speed of {base.name}"
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in notes)
    policy = "nothing skipped" if run.policy == "none" else run.policy
    return (
        f'<section class="card c{colour}"><h2>{escape(run.name)}</h2>'
        f'<p class="soft">{escape(policy)}</p><p class="headline">{escape(figure)}</p>'
        f'<p class="soft">{escape(said)}</p><dl>{rows}</dl></section>'
    )


def _control(run: Run, runs: Sequence[Run]) -> Run | None:
    """The run with random skipping that took most nearly as long; None for such runs themselves."""
    others = [other for other in runs if other.policy == "random"]
    if run.policy in ("none", "random") or not others:
        return None
    seconds = run.number("seconds") or 0.0
    return min(others, key=lambda other: abs((other.number("seconds") or 0.0) - seconds))


def findings(runs: Sequence[Run]) -> list[str]:
    """What the figures say, one sentence per run that skips, and whether random skipping did as well."""
    base, by = baseline(runs), measure(runs)
    sentences = []
    for run in runs:
        if run is base or run.policy == "none":
            continue
        seconds = run.number("seconds") or 0.0
        speed = f"{(base.number('seconds') or 0.0) / seconds:.2f}x" if seconds else "an unknown multiple of"
        sentence = (
            f"{run.name} ({run.policy}): {speed} the speed of {base.name}, {by.title} {_difference(run, base, by)}"
        )
        control = _control(run, runs)
        if control is not None:
            against = f"{control.name}, {control.number('seconds') or 0.0:.1f} s"
            sentence += f"; against random skipping ({against}) {by.title} {_difference(run, control, by)}"
        sentences.append(sentence + ".")
    return sentences


def _difference(run: Run, other: Run, by: Measure) -> str:
    ours, theirs = run.number(by.key), other.number(by.key)
    return "unknown" if ours is None or theirs is None else f"{ours - theirs:+.4f}"


def _settings(runs: Sequence[Run]) -> list[str]:
    differing = differing_settings(runs)
    if not differing:
        return []
    rows = [[key, *values] for key, values in differing]
    titles = ["setting", *(run.name for run in runs)]
    return ["<h2>Settings that differ</h2>", table(titles, rows, [False] * len(titles))]


def origin(run: Run) -> str:
    """What data a run was trained on."""
    data = run.config.get("data") if isinstance(run.config, Mapping) else None
    fingerprint = run.result.get("dataset")
    said = [
        f"data {data['path'] if isinstance(data, Mapping) and 'path' in data else data}" if data else None,
        f"fingerprint {str(fingerprint)[:12]}" if fingerprint else None,
    ]
    return ", ".join(word for word in said if word)
