"""Scoring data with a finished run: ``slipstream evaluate`` and ``slipstream predict``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from slipstream.data.store import Store
from slipstream.documents import read_json
from slipstream.errors import ConfigError, DataError
from slipstream.evaluation import (
    RankingScores,
    Scores,
    access_counts,
    first_seen,
    score,
    score_by_popularity,
    score_new_items,
)
from slipstream.evaluation.metrics import probabilities
from slipstream.evaluation.popularity import bucket_feature
from slipstream.models import Recommender
from slipstream.training.config import TrainConfig, load_config
from slipstream.training.predicting import labels_of, predict_range, set_table_dtype
from slipstream.training.ranges import check_label_range, ranges
from slipstream.training.ranked import Ranker
from slipstream.training.run_folder import MODEL
from slipstream.training.saved import Wanted, load_model


class Evaluation(BaseModel):
    """Figures of a model on some data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: Scores
    """Of all samples."""
    by_popularity: dict[str, Scores]
    """By the popularity, in this data, of the row of one feature."""
    popularity_feature: str | None
    """That feature."""
    new_items: dict[str, Scores]
    """``new``: of the samples whose row of that feature is in no sample of the data before the first one scored; empty
    where that is the first one of the data."""
    ranking: RankingScores | None
    """Figures of the ranked lists; None where the data is not of pairs or the model has no vectors."""
    dataset: str
    """Fingerprint of the data."""
    trained_on: int
    """Scored samples that the run was trained on; 0 where this is other data than the run's own."""


def predict(
    run: str | Path, data: str | Path | Store, *, start: int = 0, stop: int | None = None
) -> npt.NDArray[np.float32]:
    """Probabilities of the positive label.

    Args:
        run: Run folder.
        data: A prepared data set with the features and the encoder of the training data.
        start: First sample.
        stop: First sample that is no longer predicted; None: the end.

    Returns:
        float32 ``[stop - start]``, in the order of the data.

    Raises:
        DataError: The run has no model, its scores are not numbers, or the data does not fit it.
        ConfigError: The range is not within the data.
    """
    store = _opened(data)
    stop = store.num_samples if stop is None else stop
    model, config, known = _model_for(Path(run), store, start, stop)
    logits = predict_range(model, store, start, stop, bf16=config.bf16, known=known)
    check_logits(logits, start, Path(run))
    return probabilities(logits).astype(np.float32)


def evaluate(run: str | Path, data: str | Path | Store, *, start: int = 0, stop: int | None = None) -> Evaluation:
    """Figures of a run's model on labelled data.

    On pairs, the positives of the range are ranked among the full catalogue less what the user has before the range.

    Args:
        run: Run folder.
        data: A prepared data set with the features and the encoder of the training data.
        start: First sample.
        stop: First sample that is no longer scored; None: the end.

    Raises:
        DataError: The run has no model, its scores are not numbers, or the data does not fit it.
        ConfigError: The range is not within the data.
    """
    store = _opened(data)
    stop = store.num_samples if stop is None else stop
    if start == stop:
        raise ConfigError(f"there is no sample from {start} to {stop}", remedy="choose a range with samples")
    model, config, known = _model_for(Path(run), store, start, stop)
    logits = predict_range(model, store, start, stop, bf16=config.bf16, known=known)
    check_logits(logits, start, Path(run))
    check_label_range(store, start, stop)
    labels = labels_of(store, start, stop)
    feature = bucket_feature(store, config.popularity_feature)
    buckets: dict[str, Scores] = {}
    new: dict[str, Scores] = {}
    if feature is not None:
        rows = store.ids[start:stop, feature].numpy()
        buckets = score_by_popularity(rows, access_counts(store, feature, start, stop), labels, logits)
        if start:
            found = score_new_items(first_seen(store, feature, stop)[rows], start, None, labels, logits)
            new = {"new": found["new"]}
    ranker = Ranker.of(model, store, (0, start), (start, stop), config.ranking.k)
    return Evaluation(
        scores=score(labels, logits),
        by_popularity=buckets,
        popularity_feature=None if feature is None else store.one_hot[feature].name,
        new_items=new,
        ranking=None if ranker is None else ranker(model),
        dataset=store.fingerprint,
        trained_on=_trained_on(Path(run), config, store, start, stop),
    )


def _trained_on(run: Path, config: TrainConfig, store: Store, start: int, stop: int) -> int:
    """How many of the samples from ``start`` to ``stop`` the run, or one that it continues, was trained on."""
    marked = np.zeros(stop - start, dtype=np.bool_)
    for folder, settings in _lineage(run, config):
        result = read_json(folder / "result.json") if (folder / "result.json").is_file() else None
        if isinstance(result, dict) and result.get("dataset") == store.fingerprint:
            trained, _ = ranges(settings, store, min(store.num_samples, settings.max_samples or store.num_samples))
            marked[max(0, trained[0] - start) : max(0, trained[1] - start)] = True
    return int(np.count_nonzero(marked))


def _lineage(run: Path, config: TrainConfig) -> Iterator[tuple[Path, TrainConfig]]:
    """The run, the one that it continues, and so on, as far as their folders are still where they were."""
    seen: set[Path] = set()
    while run.resolve() not in seen:
        yield run, config
        seen.add(run.resolve())
        if config.continue_from is None or not (config.continue_from / "config.yaml").is_file():
            return
        run = config.continue_from
        try:
            config = load_config(run / "config.yaml")
        except ConfigError:  # what is damaged there is no matter of this run's
            return


_PIECE = 1 << 20


def check_finite(dense: Tensor, first: int, file: Path) -> None:
    """Refuses NaN and infinite inputs, which ReLU would turn into a score like any other.

    Args:
        dense: float32 ``[n, n_dense]``.
        first: Position of the first of these samples.
        file: Where they come from.

    Raises:
        DataError: Names the first such sample.
    """
    wrong = (~torch.isfinite(dense)).any(dim=1).nonzero()
    if wrong.numel():
        what = f"sample {first + int(wrong[0])} has a dense value that is NaN or infinite"
        raise DataError(what, file=file, remedy="prepare the data again")


def check_logits(logits: npt.NDArray[np.float32], first: int, run: Path) -> None:
    """Refuses logits that are NaN: weights or dense values are so large that sums of products overflow.

    Args:
        logits: ``[n]``.
        first: Position of the first of these samples.
        run: Whose model gave them.

    Raises:
        DataError: Names the first such sample.
    """
    wrong = np.isnan(logits)
    if wrong.any():
        what = f"gives sample {first + int(wrong.argmax())} no score but NaN"
        raise DataError(what, file=run / MODEL, remedy="look for huge dense values in it, or lower the learning rates")


def load_run(run: str | Path) -> tuple[Recommender, Wanted, TrainConfig]:
    """A run's model, what it needs of data, and its configuration.

    Predict under ``training.loop.autocast(config.bf16)``: a model is scored in the precision it was trained in.

    Raises:
        DataError: The run has no model.
        ConfigError: Its configuration cannot be read.
    """
    model, wanted = load_model(Path(run) / MODEL)
    config = load_config(Path(run) / "config.yaml")
    set_table_dtype(model, bf16=config.bf16 and config.engine == "slipstream")
    return model, wanted, config


def _opened(data: str | Path | Store) -> Store:
    return data if isinstance(data, Store) else Store.open(data)


def _model_for(run: Path, store: Store, start: int, stop: int) -> tuple[Recommender, TrainConfig, list[int] | None]:
    """A run's model and configuration, for a range of data that fits them, and its rows where the data has more."""
    if not 0 <= start <= stop <= store.num_samples:
        what = f"samples {start} to {stop} are not within the data's {store.num_samples}"
        raise ConfigError(what, remedy="choose a range within them")
    model, wanted, config = load_run(run)
    wanted.check(store)
    for first in range(start, stop, _PIECE):
        check_finite(store.dense[first : min(first + _PIECE, stop)], first, store.path)
    return model, config, None if wanted.features == store.features else [f.num_rows for f in wanted.features]
