"""Benchmarks with options of their own: frontier, drift, continue, guard, scale."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slipstream.bench import (
    BENCHES,
    BenchOptions,
    ContinueOptions,
    DriftOptions,
    FrontierOptions,
    GuardOptions,
    ScaleOptions,
)
from slipstream.cli.bench.common import (
    Cache,
    Folder,
    Html,
    Json,
    Policies,
    Quick,
    Samples,
    Seed,
    Seeds,
    Threads,
    draw,
    given,
    measure,
    numbers,
    split,
)
from slipstream.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Adds their commands."""
    for command in (frontier, drift, go_on, guard, scale):
        name = "continue" if command is go_on else command.__name__
        app.command(name, help=f"{BENCHES[name][0].upper()}{BENCHES[name][1:]}.")(command)


def frontier(
    quick: Quick = False,
    json: Json = None,
    threads: Threads = None,
    data: Annotated[str | None, typer.Option(help="A data set's name, or the path of one.")] = None,
    cache: Cache = None,
    seed: Seed = 0,
    policies: Annotated[str | None, typer.Option(help="By commas; full training and random are added.")] = None,
    budgets: Annotated[str | None, typer.Option(help="Shares that are kept, by commas.")] = None,
    seeds: Seeds = None,
    samples: Samples = None,
    mode: Annotated[str | None, typer.Option(help="holdout or prequential.")] = None,
    model: Annotated[
        str | None, typer.Option(help="In place of the data set's own: dlrm-small, dlrm-kaggle, dcnv2 or deepfm.")
    ] = None,
    embedding_decays: Annotated[str | None, typer.Option(help="Courses of the tables' rate to try, by commas.")] = None,
    tune: Annotated[bool | None, typer.Option("--tune/--no-tune", help="Tune rates for each point.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML configuration for data named by its path.")] = None,
    folder: Folder = None,
    html: Html = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(help="A kept record that the page shows too; repeatable. Without --data nothing is measured."),
    ] = None,
) -> None:
    """Quality against time."""
    from slipstream.report.frontier import load_frontier
    from slipstream.report.frontier_page import frontier_page

    if also and html is None:
        raise ConfigError("--also adds records to a page", remedy="name the page with --html")
    kept = [load_frontier(path) for path in also or ()]  # what is wrong with one is said before anything is measured
    if kept and data is None:
        draw(html, lambda: frontier_page(kept))
        return
    wanted = given(
        data=data,
        policies=split(policies),
        budgets=numbers("budgets", budgets, "(0, 1]"),
        seeds=seeds,
        samples=samples,
        mode=mode,
        model=model,
        embedding_decays=split(embedding_decays),
        tune=tune,
        config=config,
        folder=folder,
        partial=json,
    )
    options = BenchOptions(quick, threads, cache=cache, seed=seed, frontier=FrontierOptions(**wanted))
    record = measure("frontier", options, json, study=True)
    draw(html, lambda: frontier_page([record, *kept]))


def drift(
    quick: Quick = False,
    json: Json = None,
    threads: Threads = None,
    data: Annotated[str | None, typer.Option(help="globo, synthetic or both, by commas.")] = None,
    cache: Cache = None,
    seed: Seed = 0,
    budget: Annotated[float | None, typer.Option(help="Share that every policy keeps.")] = None,
    speeds: Annotated[str | None, typer.Option(help="Speeds of synthetic drift, by commas.")] = None,
    seeds: Seeds = None,
    samples: Samples = None,
    folder: Folder = None,
    html: Html = None,
) -> None:
    """Drifting data."""
    from slipstream.report.drift import drift_page

    wanted = given(
        sets=split(data),
        budget=budget,
        speeds=numbers("speeds", speeds, "[0, inf)"),
        seeds=seeds,
        samples=samples,
        folder=folder,
    )
    options = BenchOptions(quick, threads, cache=cache, seed=seed, drift=DriftOptions(**wanted))
    record = measure("drift", options, json, study=True)
    draw(html, lambda: drift_page(record))


def go_on(
    quick: Quick = False,
    json: Json = None,
    threads: Threads = None,
    cache: Cache = None,
    seed: Seed = 0,
    policies: Policies = None,
    slices: Annotated[int | None, typer.Option(help="Slices of the log.")] = None,
    hours: Annotated[float | None, typer.Option(help="Length of a slice.")] = None,
    users: Annotated[float | None, typer.Option(help="Share of the users.")] = None,
    seeds: Seeds = None,
    folder: Folder = None,
    html: Html = None,
) -> None:
    """Successive slices."""
    from slipstream.report.continuing import continue_page

    wanted = given(policies=split(policies), slices=slices, hours=hours, users=users, seeds=seeds, folder=folder)
    options = BenchOptions(quick, threads, cache=cache, seed=seed, continuing=ContinueOptions(**wanted))
    record = measure("continue", options, json, study=True)
    draw(html, lambda: continue_page(record))


def guard(
    quick: Quick = False,
    json: Json = None,
    threads: Threads = None,
    data: Annotated[str | None, typer.Option(help="Names of data sets, by commas.")] = None,
    cache: Cache = None,
    seed: Seed = 0,
    policy: Annotated[str | None, typer.Option(help="What it skips by: random or importance.")] = None,
    tolerances: Annotated[str | None, typer.Option(help="Relative rises of the log-loss, by commas.")] = None,
    auc_tolerances: Annotated[str | None, typer.Option(help="Falls of AUC, by commas.")] = None,
    seeds: Seeds = None,
    samples: Samples = None,
    folder: Folder = None,
) -> None:
    """The guard's promise."""
    wanted = given(
        data=split(data),
        policy=policy,
        tolerances=numbers("tolerances", tolerances, "(0, 1)"),
        auc_tolerances=numbers("auc tolerances", auc_tolerances, "(0, 0.5)"),
        seeds=seeds,
        samples=samples,
        folder=folder,
        partial=json,
    )
    options = BenchOptions(quick, threads, cache=cache, seed=seed, guard=GuardOptions(**wanted))
    measure("guard", options, json)


def scale(
    quick: Quick = False,
    json: Annotated[
        Path | None,
        typer.Option(help="Write the record to this file; other parts of a record there stay.", dir_okay=False),
    ] = None,
    threads: Threads = None,
    cache: Cache = None,
    seed: Seed = 0,
    parts: Annotated[
        str | None,
        typer.Option(
            help="rows, samples, features, positives and overhead (all unless named), and beyond: tables larger than "
            "memory, some minutes; by commas."
        ),
    ] = None,
    long: Annotated[bool, typer.Option("--long", help="10^8 samples too: some minutes, and 2 GB of disk.")] = False,
) -> None:
    """Cost against size."""
    wanted = given(parts=split(parts), long=long or None, keep=json)
    options = BenchOptions(quick, threads, cache=cache, seed=seed, scale=ScaleOptions(**wanted))
    measure("scale", options, json)
