"""``slipstream train``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.cli import output
from slipstream.cli.entry import complain
from slipstream.cli.settings import resolve
from slipstream.errors import ConfigError, DataError

if TYPE_CHECKING:
    from slipstream import training
    from slipstream.evaluation import RankingScores
    from slipstream.training.ranks import Ranks


def _directory(text: str) -> Path:
    """A run folder's path: of an empty one, such as an unset ``$OUT``, Python makes the current folder."""
    if not text:
        raise typer.BadParameter("the path is empty: name a folder (. is the current one)")
    return Path(text)


def train(
    data: Annotated[Path | None, typer.Argument(help="Prepared data set, or a raw file to prepare on the way.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder; without it, nothing is written. A finished run in it is replaced, once the new one is "
            "complete.",
            parser=_directory,
            metavar="DIRECTORY",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML configuration; flags win over it.", dir_okay=False)] = None,
    model: Annotated[str | None, typer.Option(help="dlrm (default), dcnv2, deepfm, mf or two_tower.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="What to skip: none (default), random, psse, importance, guard, saturation, subsampling, "
            "row_importance, slipstream, order or combine."
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(help="Train as a published system: dlrm_reference, intel_dlrm, xdl, fae or slipstream_paper."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="The policy's budget, the share that is kept; auto: the guard finds it for random or importance."
        ),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="sgd, adagrad (default), rowwise_adagrad, adam or adamw.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the dense part (0.01).")] = None,
    embedding_lr: Annotated[
        float | None, typer.Option(help="Learning rate of the tables (that of the dense part).")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples in a batch (1024).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training samples (1).")] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="holdout (default): score the last samples; prequential: predict each chunk, then train on it."
        ),
    ] = None,
    max_samples: Annotated[int | None, typer.Option(help="Use only the first so many samples.")] = None,
    bf16: Annotated[bool | None, typer.Option("--bf16/--no-bf16", help="bfloat16 autocast.")] = None,
    compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help="torch.compile.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads to compute with (torch's default).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything drawn (0).")] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting, such as optimizer.lr=0.01; wins over all; repeatable."),
    ] = None,
    logger: Annotated[
        list[str] | None,
        typer.Option(help="Log to tensorboard, mlflow or wandb too, into the run folder; repeatable."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the training in this run folder from its newest checkpoint, to the same bits as without "
            "interruption; with its own configuration, so that no other flag is needed. Begins where there is none.",
            parser=_directory,
            metavar="DIRECTORY",
        ),
    ] = None,
    continue_from: Annotated[
        Path | None,
        typer.Option(
            "--continue",
            help="Train on, on other data (the next hour or day), the model, optimizer and policy of this finished "
            "run; with its configuration where flags do not say otherwise. New values of a vocabulary need data "
            "prepared with --extend-vocabulary.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    checkpoint_minutes: Annotated[
        float | None, typer.Option(help="Minutes between two checkpoints in the run folder (5).")
    ] = None,
    checkpoint_steps: Annotated[int | None, typer.Option(help="Optimizer steps between two checkpoints.")] = None,
    on_nonfinite: Annotated[
        str | None,
        typer.Option(
            help="A batch whose loss or a gradient is not finite: stop (default), and name its samples, or skip, "
            "and count it."
        ),
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Refuse a training that is estimated to need more, such as 8GB.")
    ] = None,
    distributed: Annotated[
        bool,
        typer.Option(
            "--distributed",
            help="One of several processes that torchrun started, which share the training: torchrun --nproc-per-node "
            "2 -m slipstream train … --distributed.",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train a model, with or without skipping, and score it on samples it has not seen."""
    flags: dict[str, Any] = {
        "data": None if data is None else str(data),
        "out": None if out is None else str(out),
        "checkpoint.minutes": checkpoint_minutes,
        "checkpoint.steps": checkpoint_steps,
        "on_nonfinite": on_nonfinite,
        "max_memory": max_memory,
        "model.name": model,
        "policy.name": policy,
        **_budget(policy, budget),
        "optimizer.name": optimizer,
        "optimizer.lr": lr,
        "optimizer.embedding_lr": embedding_lr,
        "batch_size": batch_size,
        "epochs": epochs,
        "mode": mode,
        "max_samples": max_samples,
        "bf16": bf16,
        "compile": compile,
        "threads": threads,
        "seed": seed,
    }
    from slipstream import training

    given = config
    with ExitStack() as stack:
        ranks = stack.enter_context(_ranks()) if distributed else None
        if resume is not None:
            if continue_from is not None or (out is not None and out != resume):
                raise ConfigError("--resume names the run folder, and goes without --out and --continue")
            flags["out"] = str(resume)
            config = config or _config_of(resume)
            if config is None and data is None:
                raise ConfigError(f"{resume} holds no run to go on with", remedy="name the data to begin one")
        if continue_from is not None:
            if data is None or out is None:
                raise ConfigError("--continue needs the next data and --out, a run folder of its own")
            flags["continue_from"] = str(continue_from)
            config = config or _config_of(continue_from)
        settings = resolve(training.TrainConfig, config, flags, assign or ())
        if resume is not None and (settings.out is None or not _is_same(settings.out, resume)):
            raise ConfigError("--resume names the run folder", remedy="do not set out to another")
        if resume is None and given is not None and settings.out is not None:
            _check_stays(given, settings.out)
        if system is not None:
            from slipstream import systems

            settings = systems.configure(system, settings)
        first = ranks is None or ranks.first
        listeners: list[training.Listener] = [_say_what_is_replaced] if first else []
        if first and not quiet:
            listeners += [_announce, training.Progress()]
        if logger and first:
            listeners += _loggers(logger, settings.out)
        # Processes that torchrun started anew go on where the others were.
        again = resume is not None or (ranks is not None and ranks.restarted and settings.out is not None)
        try:
            result = training.train(settings, listeners=listeners, resume=again, ranks=ranks)
        except KeyboardInterrupt as interrupted:
            if interrupted.args and first:  # what was saved; Typer makes a mere status of it
                complain(str(interrupted))
            raise
    if not first:
        return
    output.facts(
        {
            "policy": result.policy,
            **_guard_facts(result.policy_report),
            **ranking_facts(result.ranking),
            "AUC": None if result.auc is None else f"{result.auc:.4f}",
            "log-loss": f"{result.log_loss:.4f}",
            "calibration": f"{result.calibration:.3f}",
            "time": f"{result.seconds:.1f} s, {result.samples_per_second:,.0f} samples/s",
            "not counted": f"{result.setup_seconds:.1f} s setting up, {result.prediction_seconds:.1f} s scoring",
            "inputs trained": f"{result.share_of_inputs_trained:.1%}",
            "row updates skipped": f"{result.share_of_row_updates_skipped:.1%}",
            "batches left out": result.nonfinite_batches or None,
            "ranks": f"{result.ranks}, {result.bytes_exchanged / 1e6:,.1f} MB sent by each" if distributed else None,
            "run": settings.out,
        }
    )


def _guard_facts(report: Mapping[str, Any]) -> dict[str, str]:
    """What a guard skips by, what it found to be worth keeping at last, and why; nothing of other policies."""
    if not report.get("moves"):
        return {}
    last = report["moves"][-1]
    return {"skips by": report["policy"], "budget": f"{last['budget']:.4g} at last: {last['reason']}"}


def _ranks() -> Ranks:
    from slipstream.training.ranks import Ranks

    return Ranks()


def _loggers(names: list[str], out: Path | None) -> list[Any]:
    """Loggers by name.

    Raises:
        ConfigError: There is no run folder, or no such logger.
        NotInstalled: A logger's package is missing.
    """
    from slipstream.interop.loggers import make_logger

    if out is None:
        raise ConfigError("--logger writes into the run folder, and there is none", remedy="add --out")
    return [make_logger(name, out / name) for name in names]


def ranking_facts(ranking: RankingScores | None) -> dict[str, str]:
    """What to print of ranked lists."""
    if ranking is None:
        return {}
    return {
        f"NDCG@{ranking.k}": f"{ranking.ndcg:.4f}",
        f"Recall@{ranking.k}": f"{ranking.recall:.4f}, {ranking.users:,} users",
        "coverage": f"{ranking.coverage:.1%} of the catalogue, Gini {ranking.gini:.3f}",
    }


def _config_of(run: Path) -> Path | None:
    file = run / "config.yaml"
    return file if file.is_file() else None


def _is_same(first: Path, second: Path) -> bool:
    """Whether two paths, of which nothing need be there, lead to the same place."""
    return os.path.realpath(first) == os.path.realpath(second)


def _check_stays(config: Path, out: Path) -> None:
    """Whether a configuration file is none that the training writes over.

    Raises:
        ConfigError: It is one.
    """
    from slipstream.training.run_folder import FILES

    if any((out / name).exists() and config.samefile(out / name) for name in FILES):
        raise ConfigError(f"{config} would be written over", remedy="choose another run folder (--out)")


def _announce(event: training.Event) -> None:
    """Say what a training will take, before it takes it, and where it goes on."""
    from slipstream.training import RunStarted

    if isinstance(event, RunStarted):
        from slipstream.training.memory import in_words

        memory = f"about {in_words(event.memory)} of memory for {event.parameters:,} parameters"
        at = "" if event.resumed_at is None else f"; going on after sample {event.resumed_at:,}"
        output.say(f"training: {memory}{at}")


def _say_what_is_replaced(event: training.Event) -> None:
    """Say which finished run the training takes the place of, and where that is for now."""
    from slipstream.report.runs import measure, open_run
    from slipstream.training import RunStarted

    if not isinstance(event, RunStarted) or event.replaced is None:
        return
    try:
        run = open_run(event.replaced)
        key, title = measure([run])
        figure = run.number(key)
        what = f"policy {run.policy}" if figure is None else f"policy {run.policy}, {title} {figure:.4f}"
    except DataError:
        what = "it cannot be read"
    ended = datetime.fromtimestamp((event.replaced / "result.json").stat().st_mtime).astimezone()
    complain(
        f"replaces the run of {ended:%Y-%m-%d %H:%M} ({what}) in {event.config.out}; "
        f"until this one is complete, that lies in {event.replaced}"
    )


def _budget(policy: str | None, budget: str | None) -> dict[str, Any]:
    """Settings of ``--budget``.

    Raises:
        ConfigError: It is neither a number nor ``auto``.
    """
    if budget == "auto":
        return {"policy.name": "guard", "policy.policy": policy or "random"}
    try:
        return {"policy.budget": None if budget is None else float(budget)}
    except ValueError as error:
        remedy = "name a share, such as --budget 0.5, or auto"
        raise ConfigError(f"--budget {budget!r} is neither a number in (0, 1] nor auto", remedy=remedy) from error
