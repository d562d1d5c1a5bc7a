"""``slipstream evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from slipstream.cli import output
from slipstream.cli.train import ranking_facts

if TYPE_CHECKING:
    from slipstream.training import Evaluation


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, as given to `slipstream train --out`.")],
    data: Annotated[Path, typer.Argument(help="Prepared data set, encoded as the training data was.")],
    start: Annotated[int, typer.Option(help="First sample.")] = 0,
    stop: Annotated[int | None, typer.Option(help="First sample no longer scored; without it, the end.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Score this range of data that comes split (pairs): train or test.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Score a trained model on labelled data: all of it, those trained on included, unless a range is given."""
    from slipstream import training
    from slipstream.data.atomic import write_text
    from slipstream.data.manifest import MANIFEST
    from slipstream.errors import NotPrepared

    if data.exists() and not (data / MANIFEST).is_file():
        remedy = (
            "make one with `slipstream prepare IN OUT --extend-vocabulary TRAINING_DATA`, so that values keep their ids"
        )
        raise NotPrepared("is not a prepared data set", file=data, remedy=remedy)
    if split is not None:
        start, stop = _range_of(data, split, start, stop)
    evaluation = training.evaluate(run, data, start=start, stop=stop)
    output.facts(ranking_facts(evaluation.ranking))
    output.console.print(score_table(evaluation))
    if evaluation.trained_on:
        output.say(f"of these samples {evaluation.trained_on:,} were trained on: --start and --stop choose others")
    if json is not None:
        write_text(json, evaluation.model_dump_json(indent=2) + "\n")
        output.say(f"figures: {json}")


def _range_of(data: Path, split: str, start: int, stop: int | None) -> tuple[int, int]:
    """The samples of a named split.

    Raises:
        ConfigError: The data has no such split, or a range is given too.
    """
    from slipstream.data.split import named_splits
    from slipstream.data.store import Store
    from slipstream.errors import ConfigError

    if start or stop is not None:
        raise ConfigError("--split and a range exclude each other", remedy="leave --start and --stop out")
    ranges = named_splits(Store.open(data))
    if split not in ranges:
        raise ConfigError(
            f"{data} has no split {split!r}", remedy=f"choose of {', '.join(ranges) or 'none: give a range'}"
        )
    return ranges[split]


def score_table(evaluation: Evaluation) -> Table:
    """All samples, then those whose row of one feature is popular, less popular, rare."""
    table = Table()
    for number, title in enumerate(("samples", "count", "AUC", "log-loss", "calibration")):
        table.add_column(title, justify="right" if number else "left")
    feature = evaluation.popularity_feature
    scored = {"all": evaluation.scores}
    scored |= {f"{bucket} of {feature}": scores for bucket, scores in evaluation.by_popularity.items()}
    scored |= {f"new in {feature}": scores for scores in evaluation.new_items.values()}
    for name, scores in scored.items():
        figures = (scores.auc, scores.log_loss, scores.calibration)
        table.add_row(
            Text(name), f"{scores.samples:,}", *("–" if figure is None else f"{figure:.4f}" for figure in figures)
        )
    return table
