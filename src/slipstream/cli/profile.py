"""``slipstream profile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from slipstream.cli import output
from slipstream.cli.settings import resolve

if TYPE_CHECKING:
    from slipstream.training.profile import Profile


def profile(
    data: Annotated[Path | None, typer.Argument(help="Prepared data set, or a raw file to prepare on the way.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML configuration; flags win over it.", dir_okay=False)] = None,
    model: Annotated[str | None, typer.Option(help="dlrm, dcnv2, deepfm, mf or two_tower.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adagrad, rowwise_adagrad, adam or adamw.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples in a batch.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads to compute with.")] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting of train: model.embedding_dim=64; repeatable."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to measure.")] = 50,
    json: Annotated[Path | None, typer.Option(help="Write the profile to this file.", dir_okay=False)] = None,
) -> None:
    """Measure where the time of a training step goes, and say which skipping can pay at most how much."""
    flags: dict[str, Any] = {
        "data": None if data is None else str(data),
        "model.name": model,
        "optimizer.name": optimizer,
        "batch_size": batch_size,
        "threads": threads,
    }
    from slipstream.data.atomic import write_text
    from slipstream.training import TrainConfig
    from slipstream.training.profile import profile as measure

    found = measure(resolve(TrainConfig, config, flags, assign or ()), steps=steps)
    output.say(f"a step of {found.batch_size:,} samples, median of {found.steps}")
    output.console.print(phases_table(found))
    output.say("at most so many times as fast, by the share that is kept")
    output.console.print(bounds_table(found))
    output.say("bounds leave quality aside: `slipstream inspect --learning-curve` says what skipping costs")
    output.say(f"recommended: {found.recommended or 'none'} ({found.reason})")
    if json is not None:
        write_text(json, found.model_dump_json(indent=2) + "\n")
        output.say(f"profile: {json}")


def phases_table(found: Profile) -> Table:
    """Time and share of each phase."""
    table = Table()
    for number, name in enumerate(("phase", "ms", "share")):
        table.add_column(name, justify="right" if number else "left")
    for name, seconds in {**found.seconds, "all": found.step_seconds}.items():
        table.add_row(Text(name), f"{1000 * seconds:.3f}", f"{seconds / found.step_seconds:.1%}")
    return table


def bounds_table(found: Profile) -> Table:
    """The most that each policy can save."""
    table = Table()
    budgets = list(found.bounds[0].speed_up) if found.bounds else []
    for number, name in enumerate(("policy", "skips", "decision ms", *(f"{budget:g}" for budget in budgets))):
        table.add_column(name, justify="right" if number > 1 else "left")
    for bound in found.bounds:
        overhead = f"{1000 * bound.overhead:.3f}" if bound.overhead else "–"
        table.add_row(bound.policy, bound.skips, overhead, *(f"{bound.speed_up[budget]:.2f}x" for budget in budgets))
    return table
