"""Learning rate and schedule of a frontier's point, chosen on data that the point is not scored on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from slipstream.data.store import Store
from slipstream.errors import ConfigError
from slipstream.training import TrainConfig, train
from slipstream.training.config import Decay
from slipstream.training.ranges import ranges

BATCHES = (1.0, 0.5, 0.25, 0.125)
"""Factors on the batch size, for full training and every policy alike; the next is tried where the one before helped.

Smaller batches take the place of skipped steps, at a price in time: only points at equal time can be compared.
"""
REACH = 8.0
"""Largest factor on the learning rates, and one over the smallest."""


TUNED_ON = {
    "holdout": "the training samples, one seed, their last fifth scored",
    "prequential": "first third of the data, one seed, scored apart from the final test",
}
"""By mode of the training: in words, what :func:`prefix_of` gives."""


class Choice(NamedTuple):
    """One point of the grid."""

    rate: float = 1.0
    """Factor on both learning rates."""
    batch: float = 1.0
    """Factor on the batch size."""
    embedding_decay: Decay = "constant"
    """Course of the tables' rate."""

    def apply(self, config: TrainConfig) -> TrainConfig:
        """The training at this point."""
        rates = config.optimizer
        embedding_lr = None if rates.embedding_lr is None else rates.embedding_lr * self.rate
        optimizer = rates.model_copy(update={"lr": rates.lr * self.rate, "embedding_lr": embedding_lr})
        schedule = config.schedule.model_copy(update={"embedding": self.embedding_decay})
        batch_size = max(1, round(config.batch_size * self.batch))
        return config.model_copy(update={"optimizer": optimizer, "schedule": schedule, "batch_size": batch_size})


class Trial(NamedTuple):
    """A point of the grid and the AUC, or NDCG, that it reached; None where the training diverged."""

    choice: Choice
    quality: float | None


def prefix_of(config: TrainConfig, store: Store, samples: int) -> TrainConfig:
    """The same training on a prefix, and scored within it, that the final score does not see.

    Holdout: the training samples, their last fifth scored; of less data the best rates are others, and with few
    positives chance chooses. Prequential: the first third of the samples, its second half scored; :func:`final_of`
    scores what comes after.

    Args:
        config: The training.
        store: The data: where it has a test part of its own, what comes before that are the training samples.
        samples: Samples of the whole.
    """
    if config.mode == "prequential":
        return config.model_copy(update={"max_samples": samples // 3, "score_from": samples // 6, "score_to": None})
    (_, trained), _ = ranges(config, store, samples)
    return config.model_copy(update={"max_samples": trained, "holdout": 0.2})


def final_of(config: TrainConfig, samples: int) -> TrainConfig:
    """The training that counts: all samples, scored where the tuning has not looked."""
    if config.mode == "prequential":
        return config.model_copy(update={"score_from": max(config.score_from, samples // 3)})
    return config


def tune(
    config: TrainConfig, decays: Sequence[Decay], store: Store, batches: Sequence[float] = BATCHES, reach: float = REACH
) -> list[Trial]:
    """Trains on the prefix at choices that climb.

    For each decay and batch size the rates are doubled, or else halved, for as long as that helps, from the best rates
    of the batch size before; the batch sizes go on for as long as the last one helped.

    Args:
        config: The training on the prefix, its policy set.
        decays: Courses of the tables' rate that are tried.
        store: The data.
        batches: Factors on the batch size that may be tried, in order.
        reach: Largest factor on the rates, and one over the smallest.

    Returns:
        One trial for each choice, in the order in which they were tried.
    """
    tried: dict[Choice, float | None] = {}

    def reached(choice: Choice) -> float:
        if choice not in tried:
            try:
                tried[choice] = train(choice.apply(config), store=store).quality
            except ConfigError:
                # The settings were validated before: what is left is a loss that is no longer finite.
                tried[choice] = None
        return -math.inf if tried[choice] is None else float(tried[choice] or 0.0)

    for decay in decays:
        top = _climb(Choice(batch=batches[0], embedding_decay=decay), reached, reach)
        for batch in batches[1:]:
            following = _climb(top._replace(batch=batch), reached, reach)
            if not reached(following) > reached(top):
                break
            top = following
    return [Trial(choice, quality) for choice, quality in tried.items()]


def _climb(start: Choice, reached: Callable[[Choice], float], reach: float) -> Choice:
    """The best rates around ``start``: doubled while that helps; halved while that helps, if doubling did not."""
    top, height = start, reached(start)
    for factor in (2.0, 0.5):
        while 1.0 / reach <= top.rate * factor <= reach:
            following = top._replace(rate=top.rate * factor)
            higher = reached(following)
            if not higher > height:
                break
            top, height = following, higher
        if top != start:
            break
    return top


def best(trials: Sequence[Trial]) -> Choice:
    """The choice of the highest AUC, or NDCG.

    Raises:
        ConfigError: Every training diverged.
    """
    reached = [trial for trial in trials if trial.quality is not None]
    if not reached:
        raise ConfigError("every learning rate that was tried diverged", remedy="lower the learning rates")
    return max(reached, key=lambda trial: trial.quality or 0.0).choice
