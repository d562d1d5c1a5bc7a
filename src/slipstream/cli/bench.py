"""``slipstream bench``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.cli import output
from slipstream.errors import ConfigError, DataError

if TYPE_CHECKING:
    from slipstream.bench import ContinueOptions, DriftOptions, FrontierOptions, GuardOptions
    from slipstream.report.record import Record

_FRONTIER = "Frontier"
_DRIFT = "Drift (takes --data, --budgets with one budget, --seeds, --samples, --folder and --html too)"
_OF_DRIFT = ("speeds", "budgets", "seeds", "samples", "folder")
_CONTINUE = "Continue (takes --policies, --seeds, --folder and --html too)"
_OF_CONTINUE = ("slices", "hours", "users", "policies", "seeds", "folder")
_NOT_OF_GUARD = (
    *("budgets", "mode", "model", "embedding_decays", "tune", "config", "speeds", "slices", "hours", "users"),
    *("html", "also"),
)
_GUARD = "Guard, with --data (names by commas), --seeds, --samples, --policies (one) and --folder"


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="kernels, step, gates, shared, checks, loader, prepare, globo, gpu, frontier, drift, continue, "
            "row-share, guard, fidelity, ranks or synthetic-fit."
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
    model: Annotated[
        str | None,
        typer.Option(
            help="In place of the data set's own: dlrm-small, dlrm-kaggle, dcnv2 or deepfm.", rich_help_panel=_FRONTIER
        ),
    ] = None,
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
    slices: Annotated[int | None, typer.Option(help="Slices of the log.", rich_help_panel=_CONTINUE)] = None,
    hours: Annotated[float | None, typer.Option(help="Length of a slice.", rich_help_panel=_CONTINUE)] = None,
    users: Annotated[float | None, typer.Option(help="Share of the users.", rich_help_panel=_CONTINUE)] = None,
    tolerances: Annotated[
        str | None, typer.Option(help="Relative rises of the log-loss, by commas.", rich_help_panel=_GUARD)
    ] = None,
    auc_tolerances: Annotated[str | None, typer.Option(help="Falls of AUC, by commas.", rich_help_panel=_GUARD)] = None,
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
        "model": model,
        "embedding_decays": _split(embedding_decays),
        "tune": tune,
        "config": config,
        "folder": folder,
        "speeds": _numbers("speeds", speeds, "[0, inf)"),
        "slices": slices,
        "hours": hours,
        "users": users,
        "tolerances": _numbers("tolerances", tolerances, "(0, 1)"),
        "auc_tolerances": _numbers("auc tolerances", auc_tolerances, "(0, 0.5)"),
    }
    given = {key: value for key, value in given.items() if value is not None}
    frontier: FrontierOptions | None = None
    drift: DriftOptions | None = None
    guarded: GuardOptions | None = None
    continuing: ContinueOptions | None = None
    source: Path | None = None
    if name == "drift":
        drift = _drift(given, data)
        if also:
            raise ConfigError("--also belongs to frontier, not to drift")
    elif name == "continue":
        continuing = _continue(given, data, also)
    elif name == "frontier":
        from slipstream.bench import FrontierOptions

        _only("frontier", given, without=("speeds", "slices", "hours", "users", "tolerances", "auc_tolerances"))
        if html is not None and also and data is None:
            _page(html, _load(also))
            return
        given["partial"] = json
        frontier = FrontierOptions(**given) if data is None else FrontierOptions(data=data, **given)
    elif name == "guard":
        pages = {key: value for key, value in (("html", html), ("also", also)) if value}
        guarded = _guard(given | pages, data, json)
    else:
        if given or html is not None or also:
            wrong = [*given, *(["html"] if html else []), *(["also"] if also else [])][0].replace("_", "-")
            owners = {"speeds": "drift", "tolerances": "guard", "auc-tolerances": "guard"}
            owner = (owners | dict.fromkeys(("slices", "hours", "users"), "continue")).get(wrong, "frontier")
            raise ConfigError(f"--{wrong} belongs to {owner}, not to {name}")
        if data is not None:
            source = Path(data)
            if not source.exists():
                raise DataError("no such data", file=source)
    options = BenchOptions(
        quick,
        threads,
        data=source,
        cache=cache,
        seed=seed,
        frontier=frontier,
        drift=drift,
        guard=guarded,
        continuing=continuing,
    )
    record = run(name, options)
    output.record_tables(_brief(record) if frontier or drift or continuing else record)
    if json is not None:
        output.say(f"record: {record.save(json)}")
    if html is not None and (drift is not None or continuing is not None):
        _study_page(html, record)
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
        owner = "continue" if wrong[0] in ("slices", "hours", "users") else "frontier"
        raise ConfigError(f"--{wrong[0].replace('_', '-')} belongs to {owner}, not to drift")
    budgets = given.pop("budgets", None)
    if budgets is not None and len(budgets) != 1:
        raise ConfigError(f"drift takes one budget, got {len(budgets)}")
    if budgets is not None:
        given["budget"] = budgets[0]
    if data is not None:
        given["sets"] = _split(data)
    return DriftOptions(**given)


def _continue(given: dict[str, Any], data: str | None, also: list[Path] | None) -> ContinueOptions:
    """Options of ``continue``.

    Raises:
        ConfigError: One belongs to another benchmark.
    """
    from slipstream.bench import ContinueOptions

    wrong = [option for option in given if option not in _OF_CONTINUE]
    wrong += [name for name, value in (("data", data), ("also", also)) if value]
    if wrong:
        raise ConfigError(f"--{wrong[0].replace('_', '-')} does not belong to continue")
    return ContinueOptions(**given)


def _study_page(html: Path, record: Record) -> None:
    """The page of a record of ``drift`` or ``continue``."""
    from slipstream.data.atomic import write_text
    from slipstream.report.continuing import continue_page
    from slipstream.report.drift import drift_page

    write_text(html, (drift_page if record.name == "drift" else continue_page)(record))
    output.say(f"page: {html}")


def _only(name: str, given: dict[str, Any], *, without: Iterable[str]) -> None:
    """Raise ConfigError if an option was given that is not the benchmark's."""
    for option in without:
        if option in given:
            raise ConfigError(f"--{option.replace('_', '-')} does not belong to {name}")


def _guard(given: dict[str, Any], data: str | None, json: Path | None) -> GuardOptions:
    from slipstream.bench import GuardOptions

    policies = given.pop("policies", None) or ("random",)
    _only(
        "guard",
        given,
        without=("budgets", "mode", "model", "embedding_decays", "tune", "config", "speeds", "html", "also"),
    )
    if len(policies) != 1:
        raise ConfigError(f"the guard skips by one policy, random or importance, not {', '.join(policies)}")
    if data is not None:
        given["data"] = _split(data)
    return GuardOptions(policy=policies[0], partial=json, **given)


def _brief(record: Record) -> Record:
    """What fits a terminal of a study's record; the file and the page hold all."""
    conditions = {key: value for key, value in record.conditions.items() if key not in ("tuning", "variants")}
    shown = ("policy", "way", "budget", "data", "variant", "AUC", "NDCG", "seconds", "to full", "inputs", "skipped")
    shown = (*shown, "above random", "same time", "to full retrained", "samples a slice", "seconds a slice")
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
