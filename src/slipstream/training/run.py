"""A whole training: open the data, train, score, write the run folder."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slipstream.data.manifest import MANIFEST
from slipstream.data.options import PrepareOptions
from slipstream.data.schema import Schema
from slipstream.data.store import Store
from slipstream.errors import ConfigError
from slipstream.evaluation import (
    CurvePoint,
    Diversity,
    Scores,
    access_counts,
    diversity_of_highest,
    first_seen,
    learning_curve,
    reliability,
    score,
    score_by_popularity,
    score_new_items,
)
from slipstream.evaluation.popularity import bucket_feature
from slipstream.kernels.compiling import when_compiling
from slipstream.policies import Policy
from slipstream.report.machine import commit, describe_machine, versions
from slipstream.training.checkpoint.folder import Loaded
from slipstream.training.config import TrainConfig, default_cache, load_config
from slipstream.training.continuing import continue_from
from slipstream.training.events import CompilingKernels, EpochDone, Event, Listener, RunDone, RunStarted, tell
from slipstream.training.listeners import JsonlMetrics, ResultWriter
from slipstream.training.loop import Outcome, Trainer
from slipstream.training.memory import check_memory
from slipstream.training.ranks import Ranks
from slipstream.training.result import Result
from slipstream.training.run_folder import CONFIG, METRICS, MODEL, RESULT, RunFolder, check_paths
from slipstream.training.saved import save_model
from slipstream.training.saver import Saver, check_data, check_same, restore
from slipstream.training.termination import SAVED, Termination
from slipstream.training.warm_up import warm_up


def train(
    config: TrainConfig,
    *,
    listeners: Sequence[Listener] = (),
    store: Store | None = None,
    resume: bool = False,
    ranks: Ranks | None = None,
) -> Result:
    """Trains a model as configured.

    With ``config.out`` the run folder gets ``config.yaml``, ``metrics.jsonl``, ``checkpoints/``, ``model.safetensors``
    and, last, ``result.json``. A finished run that is there already is replaced: once the first batch is next its files
    go into ``.replaced/``, and when the new run is complete they are removed.

    Args:
        config: The configuration.
        listeners: Called with every event, besides those that write the run folder.
        store: Data that is open already; None: opens ``config.data``.
        resume: Go on from the newest sound checkpoint in the run folder, to the same bits as without interruption;
            begin where there is none, and return the result where the training is over. Computes with as many threads
            as before unless ``config.threads`` says otherwise.
        ranks: The processes that share the training (each calls this); None: this one alone. The first one has the
            listeners and writes the run folder; each needs the data.

    Returns:
        The outcome, the same on all ranks.

    Raises:
        ConfigError: Settings and data do not fit together, the run folder is in use, holds an unfinished training or
            files that no training has made, or the configuration is not that of the checkpoint.
        NonFiniteError: The loss or a gradient is no longer finite.
        DataError: The data cannot be used or changed meanwhile, or the scored samples are of one class only.
        CheckpointError: All checkpoints are damaged.
        OutputError: The run folder cannot be written.
        Interrupted: SIGTERM or SIGHUP came, and the training was saved.
        KeyboardInterrupt: Ctrl-C came, and the training was saved (not after a second one).
    """
    config = config.resolved()
    check_paths(config)
    first = ranks is None or ranks.first
    if resume and config.out is None:
        raise ConfigError("resume needs the run folder", remedy="set out")
    with ExitStack() as stack:
        termination = stack.enter_context(Termination())
        folder: RunFolder | None = None
        loaded: Loaded | None = None
        result: Result | None = None
        if config.out is not None and first:
            folder = stack.enter_context(RunFolder(config.out, config.checkpoint.keep))
            folder.check_ours()
            if not resume:
                folder.check_over()
            result = _finished(folder, config, store) if resume else None
            # Of a run that is being replaced nothing is gone on with.
            anew = folder.is_whole and folder.is_being_replaced
            if resume and result is None and not anew and (loaded := folder.checkpoints.newest()) is not None:
                termination.remedy = SAVED.format(folder.path)
        if ranks is not None:
            result = _broadcast(ranks, result)
            loaded = loaded if result is not None else ranks.broadcast_loaded(loaded)
        if result is not None:
            return result
        threads = config.threads or (None if loaded is None else loaded.manifest.threads)
        stack.enter_context(thread_count(threads))
        stack.enter_context(torch.random.fork_rng(devices=()))
        result = _train(config, listeners if first else (), store, folder, loaded, termination, ranks)
        if ranks is not None:
            result = _broadcast(ranks, result)
        assert result is not None  # the first rank has one
        return result


def check_order(config: TrainConfig, policy: Policy) -> None:
    """Refuse, where a training begins, an order of the samples in which a policy's clock would run astray.

    Not where a configuration is read: runs of before go on, and are evaluated.

    Raises:
        ConfigError: The policy goes by the samples' time, and they do not come in its order.
    """
    if policy.follows_time and (config.shuffle or policy.plans_order):
        raise ConfigError(
            f"policy {policy.name} goes by the samples' time (half_life_unit=seconds), and they come in another order",
            remedy="use shuffle=false and no policy that orders them, or half_life_unit=steps or samples",
        )


def _finished(folder: RunFolder, config: TrainConfig, store: Store | None) -> Result | None:
    """The result of the training that is over in a folder.

    Raises:
        ConfigError: It was another training, or one on other data.
    """
    if not folder.is_whole:
        return None
    saved, result = load_config(folder.path / CONFIG), Result.load(folder.path / RESULT)
    try:
        check_same(saved.model_dump(mode="json"), config)
        # Raw data where it was, or where it no longer is, is not prepared again for a result that is there.
        if store is None and (saved.data != config.data or (Path(config.data) / MANIFEST).is_file()):
            store = open_data(config)
        if store is not None:
            check_data(result.dataset, store)
    except ConfigError:
        if folder.is_being_replaced:  # by this training, which was killed before it had moved anything
            return None
        raise
    if not config.checkpoint.final:
        folder.checkpoints.clear()
    folder.complete()
    return result


def _broadcast(ranks: Ranks, result: Result | None) -> Result | None:
    """The first rank's, on all."""
    text = ranks.broadcast(None if result is None else result.model_dump_json())
    return result if text is None or ranks.first else Result.model_validate_json(text)


def _train(
    config: TrainConfig,
    listeners: Sequence[Listener],
    store: Store | None,
    folder: RunFolder | None,
    loaded: Loaded | None,
    termination: Termination,
    ranks: Ranks | None,
) -> Result | None:
    began = time.perf_counter()
    curve = _EpochCurve()
    first = ranks is None or ranks.first
    everyone: list[Listener] = [curve] if first else []
    if folder is not None:  # before others': what fails in a logger must not cost the result
        everyone += [JsonlMetrics(folder.path / METRICS), ResultWriter(folder.path)]
    everyone += listeners if first else ()
    with _closing(everyone):
        if ranks is not None:
            ranks.check_settings(config)
        if store is None:
            with nullcontext() if ranks is None else ranks.one_after_another():
                store = open_data(config)
        if ranks is not None:
            ranks.check_same("data", store.fingerprint)
        bucket_feature(store, config.popularity_feature)
        memory = check_memory(config, store)
        with when_compiling(lambda: tell(everyone, CompilingKernels())):
            warm_up(config, store)
        trainer = Trainer(config, store, everyone, ranks)
        if loaded is not None and not trainer.savable:
            raise ConfigError("trainings on a GPU or with a row cache cannot be resumed", remedy="choose another out")
        if loaded is not None:
            restore(trainer, loaded)
        else:
            check_order(config, trainer.skipper.policy)
            if config.continue_from is not None:
                continue_from(trainer, config.continue_from)
            if folder is not None:
                folder.begin()
        setup_seconds = time.perf_counter() - began
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        resumed_at = None if loaded is None else trainer.samples
        if folder is not None:
            folder.drop_links()
        replaced = None if folder is None else folder.replaced
        tell(everyone, RunStarted(config, trainer.total_samples, parameters, memory, resumed_at, replaced))
        labels, logits = _run(trainer, folder, loaded, termination)
        if not first:
            return None
        result = _result(trainer, labels, logits, setup_seconds, curve.points)
        if folder is not None:
            save_model(trainer.model, config.model, store, folder.path / MODEL)
        tell(everyone, RunDone(result))
        if folder is not None:
            if not config.checkpoint.final:
                folder.checkpoints.clear()
            folder.complete()
    return result


def _run(trainer: Trainer, folder: RunFolder | None, loaded: Loaded | None, termination: Termination) -> Outcome:
    """Trains, and saves meanwhile and at the end."""
    if not trainer.savable:
        if folder is not None:
            warnings.warn("trainings on a GPU or with a row cache are not saved: no checkpoints", stacklevel=4)
        return trainer.run()
    saver = Saver(trainer, None if folder is None else folder.checkpoints, termination)
    with termination.deferred(), closing(saver):
        outcome = trainer.run(saver.at_boundary)
        # One that was over already is saved: a second would only take its place.
        over = loaded is not None and loaded.manifest.finished
        if (_asked(termination, trainer.ranks) or trainer.config.checkpoint.final) and not over:
            saver.save(finished=True)
    if folder is not None and folder.checkpoints.names():
        termination.remedy = SAVED.format(trainer.config.out)
    if _asked(termination, trainer.ranks):  # while it was deferred; from here on it ends at once
        raise termination.ended(termination.remedy)
    return outcome


def _asked(termination: Termination, ranks: Ranks | None) -> bool:
    """Whether the training is to end; of several ranks as the first one has it."""
    return termination.requested if ranks is None else bool(ranks.broadcast(termination.requested))


def open_data(config: TrainConfig) -> Store:
    """Opens the data that a configuration names, or prepares it into the cache.

    Raises:
        DataError: It cannot be used.
    """
    schema = None if config.columns is None else Schema.load(config.columns)
    if (Path(config.data) / MANIFEST).is_file():
        raw_only = schema, config.format, config.prepare.model_copy(update={"threads": PrepareOptions().threads})
        if config.continue_from is None and raw_only != (None, None, PrepareOptions()):
            warnings.warn(
                f"{config.data} is prepared already: columns, format and prepare are for raw files, and do nothing",
                stacklevel=2,
            )
        return Store.open(config.data)
    from slipstream.data.prepare import open_or_prepare  # the readers and their libraries: 60 MB

    cache = config.cache or default_cache()
    return open_or_prepare(config.data, cache, format=config.format, schema=schema, options=config.prepare)


def _result(
    trainer: Trainer,
    labels: npt.NDArray[np.float32],
    logits: npt.NDArray[np.float32],
    setup_seconds: float,
    epochs: list[CurvePoint],
) -> Result:
    config, store = trainer.config, trainer.store
    scores = score(labels, logits)
    # The trainer refuses samples that are all negative, and (without ranked lists) all positive.
    assert scores.log_loss is not None and scores.calibration is not None
    start, stop = trainer.score_range
    feature = bucket_feature(store, config.popularity_feature)
    buckets: dict[str, Scores] = {}
    new: dict[str, Scores] = {}
    diversity: Diversity | None = None
    if feature is not None:
        rows = store.ids[start:stop, feature].numpy()
        buckets = score_by_popularity(rows, access_counts(store, feature, *trainer.train_range), labels, logits)
        chunk = config.chunk_size if config.mode == "prequential" else None
        new = score_new_items(first_seen(store, feature, stop)[rows], start, chunk, labels, logits)
        diversity = diversity_of_highest(rows, logits)
    if (ranking := trainer.ranking) is not None:
        lists = f"lists of {ranking.k} items"
        diversity = Diversity(of=lists, coverage=ranking.coverage, gini=ranking.gini)
    report = trainer.skipper.report()
    seconds = trainer.training.seconds
    return Result(
        auc=scores.auc,
        log_loss=scores.log_loss,
        calibration=scores.calibration,
        samples_scored=scores.samples,
        seconds=seconds,
        samples_per_second=trainer.samples / seconds,
        prediction_seconds=trainer.predicting.seconds,
        setup_seconds=setup_seconds,
        samples=trainer.samples,
        steps=trainer.steps,
        policy=report.policy,
        policy_report=report.details,
        share_of_inputs_trained=report.share_of_inputs_trained,
        share_of_row_updates_skipped=report.share_of_row_updates_skipped,
        by_popularity=buckets,
        popularity_feature=None if feature is None else store.one_hot[feature].name,
        new_items=new,
        diversity=diversity,
        ranking=ranking,
        learning_curve=tuple(learning_curve(labels, logits, start=start) if config.mode == "prequential" else epochs),
        model=config.model.name,
        mode=config.mode,
        engine=config.engine,
        seed=config.seed,
        dataset=store.fingerprint,
        machine=describe_machine(),
        versions=versions(),
        commit=commit(),
        reliability=tuple(reliability(labels, logits)),
        phase_seconds=trainer.phase_seconds,
        nonfinite_batches=trainer.step.left_out,
        ranks=1 if trainer.ranks is None else trainer.ranks.world,
        bytes_exchanged=0 if trainer.ranks is None else trainer.ranks.bytes,
    )


class _EpochCurve:
    """Collects the figures after each epoch."""

    def __init__(self) -> None:
        self.points: list[CurvePoint] = []

    def state_dict(self) -> dict[str, Any]:
        """The figures so far."""
        return {"points": [point.model_dump() for point in self.points]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on after these."""
        self.points = [CurvePoint.model_validate(point) for point in state["points"]]

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochDone):
            scores = event.scores
            self.points.append(
                CurvePoint(
                    samples=event.samples,
                    auc=scores.auc,
                    log_loss=scores.log_loss,
                    seconds=event.seconds,
                    ndcg=None if event.ranking is None else event.ranking.ndcg,
                )
            )


@contextmanager
def thread_count(count: int | None) -> Iterator[None]:
    """Computes with so many threads for a while; None: as many as before."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _closing(listeners: Sequence[Listener]) -> Iterator[None]:
    """Closes listeners that can be closed, however the training ends."""
    try:
        yield
    finally:
        for listener in listeners:
            close = getattr(listener, "close", None)
            if callable(close):
                close()
