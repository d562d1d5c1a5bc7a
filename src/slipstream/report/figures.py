"""The drawings of one or several runs: quality against time, what was skipped, gates, calibration, where time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from slipstream.report import plots
from slipstream.report.log import Score
from slipstream.report.page import figure
from slipstream.report.runs import Run, measure

WINDOWS = 40
"""Points of a line whose single values scatter."""
BUCKETS = ("head", "torso", "tail")
"""Of rows, from popular to rare: those that together take half of the accesses, up to 90 %, the others."""
REST = "between steps"
Line = tuple[list[float], list[float]]


def figures(runs: Sequence[Run]) -> list[str]:
    """What can be drawn of runs; what none of them has is left out."""
    drawn = [
        _lines(runs, "Quality against time", quality_over_time, x="training time (s)", y="AUC"),
        _lines(runs, "Learning curve", lambda run: learning_curve(run.result), x="samples seen", y="AUC of the chunk"),
        _lines(runs, "Loss of the steps", loss_over_samples, x="samples seen", y="cross-entropy (nats)"),
        _lines(runs, "Inputs skipped", inputs_skipped, x="samples seen", y="share skipped"),
        _lines(runs, "Row updates skipped", updates_skipped, x="samples seen", y="share skipped"),
        _gates(runs),
        _reliability(runs),
        _phases(runs),
        _recall(runs),
        _buckets(runs),
    ]
    return [part for part in drawn if part]


def _lines(runs: Sequence[Run], caption: str, curve: Any, *, x: str, y: str) -> str:
    series = {run.name: found for run in runs if (found := curve(run)) is not None}
    if not series:
        return ""
    # A single line has no legend: among several runs the caption says whose it is.
    of = f", {next(iter(series))}" if len(series) == 1 < len(runs) else ""
    return figure(f"{caption}{of}", plots.lines(series, x=x, y=y, name=caption.lower()))


def outcome(runs: Sequence[Run]) -> str:
    """What each run came to, and in what time."""
    by = measure(runs)
    numbers = [(run.name, run.number("seconds"), run.number(by.key)) for run in runs]
    points = [
        (name, seconds, quality) for name, seconds, quality in numbers if seconds is not None and quality is not None
    ]
    if not points:
        return ""
    name = f"{by.title} against training time"
    return figure(name, plots.scatter(points, x="training time (s)", y=by.title, name=name))


def quality_over_time(run: Run) -> Line | None:
    """Training seconds and AUC.

    Of samples held out in mid-epoch, else of chunks before they were trained on, averaged over windows, else of all
    samples held out after each epoch.
    """
    log = run.log
    if len(log.scores) > 1:
        return _quality(log.scores)
    if log.chunks:
        scored = [score for score in log.chunks if score.auc is not None]
        windows = [scored[first:last] for first, last in _cuts(len(scored), WINDOWS)]
        seconds = [window[-1].seconds for window in windows]
        means = [sum(score.auc or 0.0 for score in window) / len(window) for window in windows]
        return (seconds, means) if len(seconds) > 1 else None
    return _quality(log.epochs)


def _quality(scores: Sequence[Score]) -> Line | None:
    points = [(score.seconds, score.auc) for score in scores if score.auc is not None]
    return ([seconds for seconds, _ in points], [auc for _, auc in points]) if len(points) > 1 else None


def learning_curve(result: Mapping[str, Any]) -> Line | None:
    """Samples seen and AUC of each scored chunk, None without at least two."""
    points = [
        (float(point["samples"]), float(point["auc"]))
        for point in result.get("learning_curve") or ()
        if point.get("auc") is not None
    ]
    return ([samples for samples, _ in points], [auc for _, auc in points]) if len(points) > 1 else None


def loss_over_samples(run: Run) -> Line | None:
    """Samples seen and mean loss of the steps in windows; weighted as they were trained on."""
    steps = run.log.steps
    windows = [steps[first:last] for first, last in _cuts(len(steps), WINDOWS)]
    points = [(float(window[-1].samples), sum(step.loss for step in window) / len(window)) for window in windows]
    return ([samples for samples, _ in points], [loss for _, loss in points]) if len(points) > 1 else None


def inputs_skipped(run: Run) -> Line | None:
    """Samples seen and share of the inputs since the point before that were not trained on; None if none was."""
    return _rates(run, "inputs_seen", "inputs_kept", kept=True)


def updates_skipped(run: Run) -> Line | None:
    """Samples seen and share of the row updates since the point before that a gate skipped; None if none was."""
    return _rates(run, "lookups", "skipped", kept=False)


def _rates(run: Run, whole: str, part: str, *, kept: bool) -> Line | None:
    steps = run.log.steps
    chosen = [steps[last - 1] for _, last in _cuts(len(steps), WINDOWS)]
    samples, shares = [], []
    before: Any = None
    for step in chosen:
        all_of, some = (getattr(step, key) - (getattr(before, key) if before else 0) for key in (whole, part))
        if all_of > 0:
            samples.append(float(step.samples))
            shares.append(1 - some / all_of if kept else some / all_of)
        before = step
    return (samples, shares) if len(samples) > 1 and any(shares) else None


def _cuts(length: int, most: int) -> list[tuple[int, int]]:
    """Ranges that split ``length`` things into at most so many windows of like size."""
    windows = min(length, most)
    return list(pairwise(length * place // windows for place in range(windows + 1))) if windows else []


def _gates(runs: Sequence[Run]) -> str:
    noted = [run for run in runs if run.log.gates]
    if not noted:
        return ""
    feature = noted[0].log.gates[-1].feature
    if len(noted) == 1:
        gates = noted[0].log.gates
        series = {
            bucket: ([float(line.samples) for line in gates if bucket in line.open], shares)
            for bucket in BUCKETS
            if (shares := [line.open[bucket] for line in gates if bucket in line.open])
        }
        caption = f"Gates of {feature} by popularity{'' if len(runs) == 1 else f', {noted[0].name}'}"
        y = "mean chance of an update"
        return figure(caption, plots.lines(series, x="samples seen", y=y, name="gates by popularity"))
    values = {run.name: [run.log.gates[-1].open.get(bucket) for bucket in BUCKETS] for run in noted}
    y = "mean chance of an update, at the end"
    drawn = plots.dots(BUCKETS, values, x=f"popularity of the rows of {feature}", y=y, name="gates by popularity")
    return figure("Gates by popularity", drawn)


def _reliability(runs: Sequence[Run]) -> str:
    series: dict[str, Line] = {}
    for run in runs:
        bins = run.result.get("reliability") or ()
        if bins:
            series[run.name] = ([float(own["predicted"]) for own in bins], [float(own["observed"]) for own in bins])
    if not series:
        return ""
    drawn = plots.reliability(series, x="predicted probability", y="share of positives", name="calibration")
    return figure("Calibration, in tenths by prediction", drawn)


def _phases(runs: Sequence[Run]) -> str:
    shares: dict[str, dict[str, float]] = {}
    for run in runs:
        last = run.log.steps[-1] if run.log.steps else None
        phases = dict(run.result.get("phase_seconds") or (last.phase_seconds if last else {}))
        seconds = run.number("seconds") or (last.seconds if last else 0.0)
        if phases and seconds:
            phases[REST] = max(seconds - sum(phases.values()), 0.0)
            shares[run.name] = phases
    if not shares:
        return ""
    names = list(dict.fromkeys(name for phases in shares.values() for name in phases))
    series = {name: [phases.get(name, 0.0) for phases in shares.values()] for name in names}
    drawn = plots.stacked(list(shares), series, x="training time (s)", name="where the time went")
    return figure("Where the time went", drawn)


def _recall(runs: Sequence[Run]) -> str:
    recalls = {run.name: (run.result.get("ranking") or {}).get("recall_by_popularity") or {} for run in runs}
    x = "popularity of the held-out items"
    return _by_group("Recall by popularity", recalls, x=x, y="recall")


def _buckets(runs: Sequence[Run]) -> str:
    buckets = {run.name: by_bucket(run.result) for run in runs}
    return _by_group("AUC by popularity", buckets, x="popularity of the rows touched", y="AUC")


def _by_group(caption: str, values: Mapping[str, Mapping[str, float | None]], *, x: str, y: str) -> str:
    groups = list(dict.fromkeys(group for own in values.values() for group in own))
    if not groups:
        return ""
    series = {name: [own.get(group) for group in groups] for name, own in values.items()}
    return figure(caption, plots.dots(groups, series, x=x, y=y, name=caption.lower()))


def by_bucket(result: Mapping[str, Any]) -> dict[str, float | None]:
    """AUC by popularity bucket."""
    return {str(name): figures.get("auc") for name, figures in (result.get("by_popularity") or {}).items()}
