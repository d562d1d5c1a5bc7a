"""``slipstream bench``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.cli import output
from slipstream.errors import ConfigError, DataError

if TYPE_CHECKING:
    from slipstream.bench import DriftOptions, FrontierOptions, GuardOptions, ScaleOptions
    from slipstream.report.record import Record

_FRONTIER = "Frontier"
_DRIFT = "Drift (takes --data, --budgets with one budget, --seeds, --samples, --folder and --html too)"
_OF_DRIFT = ("speeds", "budgets", "seeds", "samples", "folder")
_SCALE = "Scale (with --json, other parts of the record in that file stay)"
_GUARD = "Guard, with --data (names by commas), --seeds, --samples, --policies (one) and --folder"
_NOT_GUARD = ("budgets", "mode", "embedding_decays", "tune", "config", "speeds", "html", "also", "parts", "long")
_OWNERS = {"speeds": "drift", "tolerances": "guard", "auc-tolerances": "guard", "parts": "scale", "long": "scale"}


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="kernels, step, gates, shared, loader, prepare, globo, gpu, frontier, drift, row-share, guard, "
            "fidelity, synthetic-fit, limit, scale or profile-step."
        ),
    ],
    quick: Annotated[bool, typer.Option(help="Smaller and fewer measurements, under 40 s once compiled.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the record to this file.", dir_okay=False)] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to compute with.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="The input of benchmarks that read real data: a path or, for frontier, a data set's name."),
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for prepared data between runs.", file_okay=False)] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn; the first of several.")] = 0,
    policies: Annotated[
        str | None,
        typer.Option(help="By commas; full training and random are added.", rich_help_panel=_FRONTIER),
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(help="Shares that are kept, by commas.", rich_help_panel=_FRONTIER)
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each point.", rich_help_panel=_FRONTIER)] = None,
    samples: Annotated[
        int | None, typer.Option(help="Use only the first so many samples.", rich_help_panel=_FRONTIER)
    ] = None,
    mode: Annotated[str | None, typer.Option(help="holdout or prequential.", rich_help_panel=_FRONTIER)] = None,
    embedding_decays: Annotated[
        str | None, typer.Option(help="Courses of the tables' rate to try, by commas.", rich_help_panel=_FRONTIER)
    ] = None,
    tune: Annotated[
        bool | None, typer.Option("--tune/--no-tune", help="Tune rates for each point.", rich_help_panel=_FRONTIER)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML configuration for data named by its path.", rich_help_panel=_FRONTIER)
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where public data sets lie (../shared/data).", rich_help_panel=_FRONTIER)
    ] = None,
    speeds: Annotated[
        str | None, typer.Option(help="Speeds of synthetic drift, by commas.", rich_help_panel=_DRIFT)
    ] = None,
    tolerances: Annotated[
        str | None, typer.Option(help="Relative rises of the log-loss, by commas.", rich_help_panel=_GUARD)
    ] = None,
    auc_tolerances: Annotated[str | None, typer.Option(help="Falls of AUC, by commas.", rich_help_panel=_GUARD)] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            help="By commas: rows, samples, features, positives, overhead; all of them.", rich_help_panel=_SCALE
        ),
    ] = None,
    long: Annotated[
        bool, typer.Option("--long", help="Up to 10^8 samples: minutes more, 2 GB of disk.", rich_help_panel=_SCALE)
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Draw the record on a page.", rich_help_panel=_FRONTIER)] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(help="A kept record that the page shows too; repeatable. Without --data nothing is measured."),
    ] = None,
) -> None:
    """Measure ours against peers in one process, alternating; for frontier, policies against each other."""
    from slipstream.bench import BenchOptions, run

    name = name.replace("-", "_")
    given: dict[str, Any] = {
        "policies": _split(policies),
        "budgets": _numbers("budgets", budgets, "(0, 1]"),
        "seeds": seeds,
        "samples": samples,
        "mode": mode,
        "embedding_decays": _split(embedding_decays),
        "tune": tune,
        "config": config,
        "folder": folder,
        "speeds": _numbers("speeds", speeds, "[0, inf)"),
        "tolerances": _numbers("tolerances", tolerances, "(0, 1)"),
        "auc_tolerances": _numbers("auc tolerances", auc_tolerances, "(0, 0.5)"),
        "parts": _split(parts),
        "long": long or None,
    }
    given = {key: value for key, value in given.items() if value is not None}
    frontier: FrontierOptions | None = None
    drift: DriftOptions | None = None
    guarded: GuardOptions | None = None
    scaled: ScaleOptions | None = None
    source: Path | None = None
    if name == "drift":
        drift = _drift(given, data)
        if also:
            raise ConfigError("--also belongs to frontier, not to drift")
    elif name == "frontier":
        from slipstream.bench import FrontierOptions

        _only("frontier", given, without=("speeds", "tolerances", "auc_tolerances", "parts", "long"))
        if html is not None and also and data is None:
            _page(html, _load(also))
            return
        given["partial"] = json
        frontier = FrontierOptions(**given) if data is None else FrontierOptions(data=data, **given)
    elif name == "guard":
        pages = {key: value for key, value in (("html", html), ("also", also)) if value}
        guarded = _guard(given | pages, data, json)
    elif name == "scale":
        others = {key: value for key, value in (("html", html), ("also", also), ("data", data)) if value}
        scaled = _scale(given | others, json)
    else:
        if given or html is not None or also:
            wrong = [*given, *(["html"] if html else []), *(["also"] if also else [])][0].replace("_", "-")
            owner = _OWNERS.get(wrong, "frontier")
            raise ConfigError(f"--{wrong} belongs to {owner}, not to {name}")
        if data is not None:
            source = Path(data)
            if not source.exists():
                raise DataError("no such data", file=source)
    options = BenchOptions(
        quick, threads, data=source, cache=cache, seed=seed, frontier=frontier, drift=drift, guard=guarded, scale=scaled
    )
    record = run(name, options)
    output.record_tables(_brief(record) if frontier or drift else record)
    if json is not None:
        output.say(f"record: {record.save(json)}")
    if html is not None and drift is not None:
        _drift_page(html, record)
    elif html is not None:
        _page(html, [record, *_load(also or ())])


def _drift(given: dict[str, Any], data: str | None) -> DriftOptions:
    """Options of ``drift``.

    Raises:
        ConfigError: One belongs to frontier alone, or there is more than one budget.
    """
    from slipstream.bench import DriftOptions

    wrong = [option for option in given if option not in _OF_DRIFT]
    if wrong:
        raise ConfigError(f"--{wrong[0].replace('_', '-')} belongs to frontier, not to drift")
    budgets = given.pop("budgets", None)
    if budgets is not None and len(budgets) != 1:
        raise ConfigError(f"drift takes one budget, got {len(budgets)}")
    if budgets is not None:
        given["budget"] = budgets[0]
    if data is not None:
        given["sets"] = _split(data)
    return DriftOptions(**given)


def _drift_page(html: Path, record: Record) -> None:
    from slipstream.data.atomic import write_text
    from slipstream.report.drift import drift_page

    write_text(html, drift_page(record))
    output.say(f"page: {html}")


def _only(name: str, given: dict[str, Any], *, without: Iterable[str]) -> None:
    """Raise ConfigError if an option was given that is not the benchmark's."""
    for option in without:
        if option in given:
            raise ConfigError(f"--{option.replace('_', '-')} does not belong to {name}")


def _guard(given: dict[str, Any], data: str | None, json: Path | None) -> GuardOptions:
    from slipstream.bench import GuardOptions

    policies = given.pop("policies", None) or ("random",)
    _only("guard", given, without=_NOT_GUARD)
    if len(policies) != 1:
        raise ConfigError(f"the guard skips by one policy, random or importance, not {', '.join(policies)}")
    if data is not None:
        given["data"] = _split(data)
    return GuardOptions(policy=policies[0], partial=json, **given)


def _scale(given: dict[str, Any], json: Path | None) -> ScaleOptions:
    from slipstream.bench import ScaleOptions

    _only("scale", given, without=[option for option in given if option not in ("parts", "long")])
    return ScaleOptions(**given, keep=json)


def _brief(record: Record) -> Record:
    """What fits a terminal of a frontier's or a drift's record; the file and the page hold all."""
    conditions = {key: value for key, value in record.conditions.items() if key not in ("tuning", "variants")}
    shown = ("policy", "budget", "data", "variant", "AUC", "NDCG", "seconds", "to full", "inputs", "skipped")
    shown = (*shown, "above random", "same time")
    rows = [{name: row[name] for name in shown if name in row} for row in record.rows]
    return record.model_copy(update={"conditions": conditions, "rows": rows})


def _load(paths: Iterable[Path]) -> list[Record]:
    from slipstream.report.record import Record

    return [Record.load(path) for path in paths]


def _page(html: Path, records: Sequence[Record]) -> None:
    from slipstream.data.atomic import write_text
    from slipstream.report.frontier_page import frontier_page

    write_text(html, frontier_page(records))
    output.say(f"page: {html}")


def _split(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(name: str, text: str | None, allowed: str) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"{name} must be numbers in {allowed} with commas between, got {text!r}") from error
