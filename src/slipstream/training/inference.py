"""Scoring data with a finished run: ``slipstream evaluate`` and ``slipstream predict``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from slipstream.data.store import Store
from slipstream.errors import ConfigError
from slipstream.evaluation import Scores, access_counts, score, score_by_popularity
from slipstream.evaluation.popularity import bucket_feature
from slipstream.models import Recommender
from slipstream.training.config import TrainConfig, load_config
from slipstream.training.predicting import labels_of, predict_range, set_table_dtype
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
    dataset: str
    """Fingerprint of the data."""


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
        DataError: The run has no model, or the data does not fit it.
        ConfigError: The range is not within the data.
    """
    return (1 / (1 + np.exp(-_logits(Path(run), _opened(data), start, stop).astype(np.float64)))).astype(np.float32)


def evaluate(run: str | Path, data: str | Path | Store, *, start: int = 0, stop: int | None = None) -> Evaluation:
    """Figures of a run's model on labelled data.

    Args:
        run: Run folder.
        data: A prepared data set with the features and the encoder of the training data.
        start: First sample.
        stop: First sample that is no longer scored; None: the end.

    Raises:
        DataError: The run has no model, or the data does not fit it.
        ConfigError: The range is not within the data.
    """
    store = _opened(data)
    stop = store.num_samples if stop is None else stop
    logits = _logits(Path(run), store, start, stop)
    labels = labels_of(store, start, stop)
    feature = bucket_feature(store, load_config(Path(run) / "config.yaml").popularity_feature)
    buckets: dict[str, Scores] = {}
    if feature is not None:
        rows = store.ids[start:stop, feature].numpy()
        buckets = score_by_popularity(rows, access_counts(store, feature, start, stop), labels, logits)
    return Evaluation(
        scores=score(labels, logits),
        by_popularity=buckets,
        popularity_feature=None if feature is None else store.one_hot[feature].name,
        dataset=store.fingerprint,
    )


def load_run(run: str | Path) -> tuple[Recommender, Wanted, TrainConfig]:
    """A run's model, what it needs of data, and its configuration.

    Predict under ``training.loop.autocast(config.bf16)``: a model is scored in the precision it was trained in.

    Raises:
        DataError: The run has no model.
        ConfigError: Its configuration cannot be read.
    """
    model, wanted = load_model(Path(run) / "model.safetensors")
    config = load_config(Path(run) / "config.yaml")
    set_table_dtype(model, bf16=config.bf16 and config.engine == "slipstream")
    return model, wanted, config


def _opened(data: str | Path | Store) -> Store:
    return data if isinstance(data, Store) else Store.open(data)


def _logits(run: Path, store: Store, start: int, stop: int | None) -> npt.NDArray[np.float32]:
    stop = store.num_samples if stop is None else stop
    if not 0 <= start <= stop <= store.num_samples:
        raise ConfigError(f"samples {start} to {stop} are not within the data's {store.num_samples}")
    model, wanted, config = load_run(run)
    wanted.check(store)
    known = None if wanted.features == store.features else [feature.num_rows for feature in wanted.features]
    return predict_range(model, store, start, stop, bf16=config.bf16, known=known)
