"""The comparison page: one file, no scripts, nothing loaded from elsewhere, every text from a run escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape
from importlib import resources
from typing import Any

from slipstream.report import plots
from slipstream.report.runs import Measure, Run, baseline, differing_settings, measure
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
        f'<p class="soft">{escape(_origin(base))}</p>',
        _cards(runs),
        '<p class="soft">One run of each: differences of the size of run-to-run spread mean nothing; repeat with other '
        "seeds.</p>",
        f'<div class="plots">{"".join(_figures(runs))}</div>',
        "<h2>Figures</h2>",
        f'<p class="soft">Speed-up and differences (Δ) are against {escape(base.name)}.</p>',
        table(
            [column.title for column in columns(runs)], comparison(runs), [column.numeric for column in columns(runs)]
        ),
        "<h2>In words</h2>" if findings(runs) else "",
        f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in findings(runs))}</ul>",
        *_settings(runs),
        *_environment(runs),
    ]
    return page(title, parts)


def page(title: str, parts: Sequence[str]) -> str:
    """A complete HTML document in the project's style.

    Args:
        title: Its title, plain text.
        parts: The body, as HTML.
    """
    style = "\n" + resources.files("slipstream.report").joinpath("page.css").read_text(encoding="utf-8")
    digest = b64encode(sha256(style.encode()).digest()).decode()
    # Nothing may be loaded or run, whatever a run's name or a setting holds: this style and an empty icon are all.
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{style}</style></head>
<body>
{chr(10).join(parts)}
</body></html>
"""


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


def _figures(runs: Sequence[Run]) -> list[str]:
    figures = []
    by = measure(runs)
    numbers = [(run.name, run.number("seconds"), run.number(by.key)) for run in runs]
    points = [
        (name, seconds, quality) for name, seconds, quality in numbers if seconds is not None and quality is not None
    ]
    if points:
        name = f"{by.title} against training time"
        figures.append(figure(name, plots.scatter(points, x="training time (s)", y=by.title, name=name)))
    recalls = {run.name: (run.result.get("ranking") or {}).get("recall_by_popularity") or {} for run in runs}
    if any(recalls.values()):
        groups = list(dict.fromkeys(group for values in recalls.values() for group in values))
        series = {name: [values.get(group) for group in groups] for name, values in recalls.items()}
        drawn = plots.dots(
            groups, series, x="popularity of the held-out items", y="recall", name="recall by popularity"
        )
        figures.append(figure("Recall by popularity", drawn))
    curves = {run.name: curve for run in runs if (curve := learning_curve(run.result))}
    if curves:
        drawn = plots.lines(curves, x="samples seen", y="AUC of the chunk", name="learning curve")
        figures.append(figure("Learning curve", drawn))
    buckets = {run.name: by_bucket(run.result) for run in runs}
    groups = list(dict.fromkeys(group for values in buckets.values() for group in values))
    if groups:
        series = {name: [values.get(group) for group in groups] for name, values in buckets.items()}
        drawn = plots.dots(groups, series, x="popularity of the rows touched", y="AUC", name="AUC by popularity")
        figures.append(figure("AUC by popularity", drawn))
    return figures


def learning_curve(result: Mapping[str, Any]) -> tuple[list[float], list[float]] | None:
    """Samples seen and AUC of each scored chunk, None without at least two."""
    points = [
        (float(point["samples"]), float(point["auc"]))
        for point in result.get("learning_curve") or ()
        if point.get("auc") is not None
    ]
    return ([samples for samples, _ in points], [auc for _, auc in points]) if len(points) > 1 else None


def by_bucket(result: Mapping[str, Any]) -> dict[str, float | None]:
    """AUC by popularity bucket."""
    return {str(name): figures.get("auc") for name, figures in (result.get("by_popularity") or {}).items()}


def figure(caption: str, svg: str) -> str:
    """A drawing with its caption."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    """A table that scrolls sideways where it is too wide; ``numeric`` columns are set flush right."""

    def cell(text: str, number: bool, *, head: bool = False) -> str:
        tag = "th" if head else "td"
        shape = ' class="number"' if number else ' class="wrap"' if len(text) > 40 else ""
        return f"<{tag}{shape}>{escape(text)}</{tag}>"

    heads = "".join(cell(text, number, head=True) for text, number in zip(titles, numeric, strict=True))
    body = "".join(
        "<tr>"
        + "".join(
            cell(text, number, head=place == 0) for place, (text, number) in enumerate(zip(row, numeric, strict=True))
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _settings(runs: Sequence[Run]) -> list[str]:
    differing = differing_settings(runs)
    if not differing:
        return []
    rows = [[key, *values] for key, values in differing]
    titles = ["setting", *(run.name for run in runs)]
    return ["<h2>Settings that differ</h2>", table(titles, rows, [False] * len(titles))]


def _environment(runs: Sequence[Run]) -> list[str]:
    rows = [
        [
            run.name,
            _words(run.result.get("machine")),
            _words(run.result.get("versions")),
            str(run.result.get("commit") or "–"),
        ]
        for run in runs
    ]
    return ["<h2>Measured on</h2>", table(["run", "machine", "versions", "commit"], rows, [False] * 4)]


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    return "–" if value is None else str(value)


def _origin(run: Run) -> str:
    data = run.config.get("data") if isinstance(run.config, Mapping) else None
    fingerprint = run.result.get("dataset")
    said = [
        f"data {data['path'] if isinstance(data, Mapping) and 'path' in data else data}" if data else None,
        f"fingerprint {str(fingerprint)[:12]}" if fingerprint else None,
    ]
    return ", ".join(word for word in said if word)
