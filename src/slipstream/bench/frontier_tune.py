"""Learning rate and schedule of a frontier's point, chosen on data that the point is not scored on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from slipstream.bench.frontier_options import HALF_BATCH
from slipstream.data.store import Store
from slipstream.errors import ConfigError
from slipstream.training import TrainConfig, train
from slipstream.training.config import HOLDOUT, Decay

RATES = (0.5, 1.0, 2.0)
"""Factors on both learning rates."""
BATCHES: dict[str, tuple[float, ...]] = {HALF_BATCH: (0.5,)}
"""Factors on the batch size, by policy; 1 for those not named.

Smaller batches take the place of skipped steps, at a price in time, so they are a control of their own: tuned into
random skipping they would make it better and slower, and hide what either does.
"""


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


def grid(policy: str, decays: Sequence[Decay], rates: Sequence[float] = RATES) -> list[Choice]:
    """The points that are tried for a policy."""
    return [Choice(*values) for values in product(rates, BATCHES.get(policy, (1.0,)), decays)]


def prefix_of(config: TrainConfig, samples: int) -> TrainConfig:
    """The same training on a prefix, and scored within it, that the final score does not see.

    Holdout: the first third of the training samples, its last fifth scored. Prequential: the first third of the
    samples, its second half scored; :func:`final_of` scores what comes after.

    Args:
        config: The training.
        samples: Samples of the whole.
    """
    if config.mode == "prequential":
        return config.model_copy(update={"max_samples": samples // 3, "score_from": samples // 6, "score_to": None})
    trained = samples - round(samples * (config.holdout or HOLDOUT))
    return config.model_copy(update={"max_samples": trained // 3, "holdout": 0.2})


def final_of(config: TrainConfig, samples: int) -> TrainConfig:
    """The training that counts: all samples, scored where the tuning has not looked."""
    if config.mode == "prequential":
        return config.model_copy(update={"score_from": max(config.score_from, samples // 3)})
    return config


def tune(config: TrainConfig, choices: Sequence[Choice], store: Store) -> list[Trial]:
    """Trains every point of the grid on the prefix.

    Args:
        config: The training on the prefix, its policy set.
        choices: The grid.
        store: The data.

    Returns:
        One trial for each choice, in their order.
    """
    trials: list[Trial] = []
    for choice in choices:
        try:
            trials.append(Trial(choice, train(choice.apply(config), store=store).quality))
        except ConfigError:
            # The settings were validated before: what is left is a loss that is no longer finite.
            trials.append(Trial(choice, None))
    return trials


def best(trials: Sequence[Trial]) -> Choice:
    """The choice of the highest AUC, or NDCG.

    Raises:
        ConfigError: Every training diverged.
    """
    reached = [trial for trial in trials if trial.quality is not None]
    if not reached:
        raise ConfigError("every learning rate that was tried diverged", remedy="lower the learning rates")
    return max(reached, key=lambda trial: trial.quality or 0.0).choice
