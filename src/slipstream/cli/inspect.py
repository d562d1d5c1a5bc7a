"""``slipstream inspect``."""

from __future__ import annotations

from collections.abc import Iterable
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from slipstream.cli import output
from slipstream.report.columns import GAP, fill

if TYPE_CHECKING:
    from slipstream.data.store import Store
    from slipstream.evaluation.popularity_profile import PopularityProfile
    from slipstream.training.redundancy import Redundancy

_SLICES = 10


def inspect(
    data: Annotated[Path, typer.Argument(help="Prepared data set.")],
    slices: Annotated[int | None, typer.Option(help="Slices in time between which drift is measured (10).")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the whole profile to this file.")] = None,
    learning_curve: Annotated[
        bool,
        typer.Option("--learning-curve", help="Train on 1/8, 1/4, 1/2 and all inputs: what skipping costs at random."),
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="YAML configuration of those trainings; flags win over it.", dir_okay=False)
    ] = None,
    model: Annotated[str | None, typer.Option(help="Their model: dlrm, dcnv2, deepfm, mf or two_tower.")] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Any of their settings: optimizer.lr=0.01; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings at each share.")] = 1,
) -> None:
    """Show how skewed a data set's accesses are, how fast what is popular changes, and how redundant it is."""
    from slipstream.cli.prepare import describe
    from slipstream.data.atomic import write_text
    from slipstream.data.store import Store
    from slipstream.errors import ConfigError
    from slipstream.evaluation.popularity_profile import popularity_profile

    if not learning_curve and (config or model or assign):
        raise ConfigError("--config, --model and --set belong to --learning-curve")
    store = Store.open(data)
    describe(store)
    profile = popularity_profile(store, slices=min(_SLICES, store.num_samples) if slices is None else slices)
    output.console.print(profile_table(profile, width=output.console.width))
    output.say(
        "top 1 %: share of the accesses that the most popular 1 % of the rows take; top rows kept: of a slice's "
        f"{profile.top_fraction:.0%} most popular rows, the share that were so in the slice before, mean over "
        f"{len(profile.slice_starts)} slices; first to last: the last slice's against the first's"
    )
    written = profile.model_dump(mode="json")
    if learning_curve:
        found = _redundancy(store, config, {"data": str(data), "model.name": model}, assign or (), seeds)
        fit, trainings = found.fit, "one training" if found.seeds == 1 else f"{found.seeds} trainings"
        output.say(f"AUC of a share n of the inputs: {fit.a:.4f} - {fit.b:.4f} n^-{fit.c:.2f}, {trainings} each")
        output.console.print(curve_table(found))
        output.say("what skipping inputs at random costs")
        output.console.print(cost_table(found))
        output.say("at random, with the rates given; a policy that chooses what to skip has to cost less than that")
        written["learning_curve"] = found.model_dump(mode="json")
    if json is not None:
        write_text(json, dumps(written, indent=2) + "\n")
        output.say(f"profile: {json}")


def _redundancy(
    store: Store, config: Path | None, flags: dict[str, Any], assign: Iterable[str], seeds: int
) -> Redundancy:
    from slipstream.cli.settings import resolve
    from slipstream.training import TrainConfig
    from slipstream.training.redundancy import redundancy

    return redundancy(resolve(TrainConfig, config, flags, assign), seeds=seeds, store=store)


def curve_table(found: Redundancy) -> Table:
    """AUC at each share of the training inputs, measured and by the curve."""
    fit = found.fit
    table = Table()
    for name in ("inputs", "AUC", "spread", "curve", "time (s)"):
        table.add_column(name, justify="right")
    for point in found.measured:
        spread = f"{point.auc_std:.4f}" if found.seeds > 1 else "–"
        auc, curve = f"{point.auc:.4f}", f"{fit.auc(point.share):.4f}"
        table.add_row(f"{point.share:.1%}", auc, spread, curve, f"{point.seconds:.1f}")
    return table


def cost_table(found: Redundancy) -> Table:
    """What skipping costs at random."""
    table = Table()
    for name in ("kept", "AUC lost"):
        table.add_column(name, justify="right")
    for budget, cost in found.cost.items():
        table.add_row(f"{budget:.0%}", f"{cost:.4f}")
    return table


def profile_table(profile: PopularityProfile, *, width: int) -> Table:
    """One line per feature, all together first; a wide one has how many rows are seen and Zipf's exponent too."""
    shares = list(profile.overall.top_shares)
    titles = ["feature", "rows", "seen", *(f"top {share * 100:g} %" for share in shares), "Gini", "Zipf"]
    titles += ["top rows kept", "first to last", "new accesses"]
    left_out = () if width >= 110 else ("seen", "Zipf")
    rows: list[list[str]] = []
    for row in (profile.overall, *profile.features):
        cells = [row.name, f"{row.num_rows:,}", f"{row.rows_seen / row.num_rows:.0%}"]
        cells += [f"{row.top_shares[share]:.1%}" for share in shares]
        cells += [f"{row.gini:.3f}", "–" if row.zipf_exponent is None else f"{row.zipf_exponent:.2f}"]
        cells += [_mean(row.overlap), f"{row.overlap_first_last:.0%}", _mean(row.new_accesses)]
        rows.append([cell for title, cell in zip(titles, cells, strict=True) if title not in left_out])
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    fill(table, [title for title in titles if title not in left_out], rows, width=width)
    return table


def _mean(shares: tuple[float, ...]) -> str:
    return f"{sum(shares) / len(shares):.0%}" if shares else "–"
