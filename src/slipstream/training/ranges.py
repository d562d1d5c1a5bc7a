"""Which samples are trained on, and which are scored."""

from __future__ import annotations

import torch

from slipstream.data.split import named_splits
from slipstream.data.store import Store
from slipstream.errors import ConfigError, DataError
from slipstream.training.config import HOLDOUT, TrainConfig
from slipstream.training.predicting import labels_of


def ranges(config: TrainConfig, store: Store, end: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Samples to train on and samples to score, of the first ``end`` samples.

    Raises:
        ConfigError: One of them is empty.
    """
    if config.mode == "prequential":
        train = (0, end)
        scored = (config.score_from, min(config.score_to or end, end))
    else:
        cut = end - round(end * (config.holdout or HOLDOUT))
        test = named_splits(store).get("test")
        if config.holdout is None and test is not None and test[0] < end:
            cut = test[0]
        train, scored = (0, cut), (cut, end)
    for name, (start, stop) in (("train on", train), ("score", scored)):
        if stop <= start:
            raise ConfigError(
                f"there are no samples to {name}", remedy="use more samples, or change holdout or score_from"
            )
    return train, scored


_PIECE = 1 << 20


def check_labels(store: Store, start: int, stop: int) -> None:
    """Raise DataError unless both classes occur: found after the training, it would cost the training."""
    positive = labels_of(store, start, stop) > 0.5
    if positive.all() or not positive.any():
        raise DataError(
            f"samples {start} to {stop}, which are scored, all have the same label",
            file=store.path,
            remedy="score more samples",
        )


def check_label_range(store: Store, start: int = 0, stop: int | None = None) -> None:
    """Raise DataError unless labels are from 0 to 1: of others cross-entropy and its figures mean nothing."""
    if store.labels.dtype == torch.uint8:
        return
    labels = store.labels[start:stop]
    for begin in range(0, len(labels), _PIECE):
        piece = labels[begin : begin + _PIECE]
        wrong = (piece < 0) | (piece > 1)
        if bool(wrong.any()):
            place = int(wrong.nonzero()[0])
            raise DataError(
                f"sample {start + begin + place} has the label {float(piece[place]):g}, which is not from 0 to 1",
                file=store.path,
                remedy="prepare it with a --label-threshold, or with labels of 0 and 1",
            )


def check_negatives(store: Store) -> None:
    """Raise DataError where there are positives alone: cross-entropy would only learn to say yes to everything."""
    if store.labels.dtype == torch.uint8 and store.manifest.num_positives == store.num_samples:
        raise DataError(
            "holds positives alone, from which cross-entropy learns nothing",
            file=store.path,
            remedy="prepare it with --negatives=1, or rank its pairs: --model=mf --set model.objective=bpr",
        )
