"""``slipstream evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from slipstream.cli import output

if TYPE_CHECKING:
    from slipstream.training import Evaluation


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, as given to `slipstream train --out`.")],
    data: Annotated[Path, typer.Argument(help="Prepared data set, encoded as the training data was.")],
    start: Annotated[int, typer.Option(help="First sample.")] = 0,
    stop: Annotated[int | None, typer.Option(help="First sample no longer scored; without it, the end.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Score a trained model on labelled data: all of it, those trained on included, unless a range is given."""
    from slipstream import training
    from slipstream.data.atomic import write_text

    evaluation = training.evaluate(run, data, start=start, stop=stop)
    output.console.print(score_table(evaluation))
    if json is not None:
        write_text(json, evaluation.model_dump_json(indent=2) + "\n")
        output.say(f"figures: {json}")


def score_table(evaluation: Evaluation) -> Table:
    """All samples, then those whose row of one feature is popular, less popular, rare."""
    table = Table()
    for number, title in enumerate(("samples", "count", "AUC", "log-loss", "calibration")):
        table.add_column(title, justify="right" if number else "left")
    feature = evaluation.popularity_feature
    scored = {"all": evaluation.scores}
    scored |= {f"{bucket} of {feature}": scores for bucket, scores in evaluation.by_popularity.items()}
    for name, scores in scored.items():
        figures = (scores.auc, scores.log_loss, scores.calibration)
        table.add_row(name, f"{scores.samples:,}", *("–" if figure is None else f"{figure:.4f}" for figure in figures))
    return table
