"""How much memory a training will take, before it takes it."""

from __future__ import annotations

import torch

from slipstream.data.store import Store
from slipstream.embedding import tables
from slipstream.errors import ConfigError
from slipstream.evaluation.popularity import bucket_feature
from slipstream.models import build_model
from slipstream.policies import (
    CombineConfig,
    GuardConfig,
    ImportanceConfig,
    OrderConfig,
    PsseConfig,
    RandomConfig,
    SaturationConfig,
    SlipstreamConfig,
    build_policy,
)
from slipstream.policies.base import PolicyBaseConfig
from slipstream.training.checkpoint.tensors import SHARD_BYTES
from slipstream.training.config import OptimizerName, TrainConfig
from slipstream.training.ranges import ranges

_STATES: dict[OptimizerName, int] = {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 0, "adam": 2, "adamw": 2}
"""Numbers that an optimizer keeps for each element of a table."""
_POLICY_ROW_BYTES = 8
"""Bytes a row that a policy of rows keeps: counts, gates, signals."""
_TRAIL_BYTES = 20
"""Bytes a row that ``saturation`` keeps besides where the optimizer has no moments."""
_SCORED_BYTES = 24
"""Bytes a scored sample that figures take beside labels and logits; those of new items take most."""
_SCORED_ROW_BYTES = 48
"""Bytes a row that figures by popularity take, of the feature that they are about."""
_INSIDE: dict[str, PolicyBaseConfig] = {"random": RandomConfig(), "importance": ImportanceConfig()}
"""What ``guard`` skips by."""
_LAYERS = 6
"""Copies of a batch's vectors that a step holds at a time, gradients included: a rule of thumb."""


def estimate_memory(config: TrainConfig, store: Store) -> int:
    """Bytes that model, optimizer, policy, a step, the scoring and the writing of checkpoints will take.

    The data is mapped, and its pages can be given back at any time: it does not count, nor do Python and its libraries
    (about 0.5 GB).
    """
    with torch.device("meta"):
        model = build_model(config.model, store.features, store.num_dense, engine="slipstream")
    own = tables(model)
    rows = sum(table.num_rows for table in own.values())
    elements = sum(table.weight.numel() for table in own.values())
    dense = sum(parameter.numel() for parameter in model.parameters()) - elements
    states = _STATES[config.optimizer.name] + (config.optimizer.name == "sgd" and config.optimizer.momentum > 0)
    total = 4 * elements * (1 + states) + 4 * rows * (config.optimizer.name == "rowwise_adagrad")
    total += 4 * rows * (config.optimizer.on_skip == "catch_up")
    total += 4 * dense * (2 + _STATES[config.optimizer.dense_name or config.optimizer.name])
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    total += _policy_memory(config.policy, rows, weights, store, moments=states > 1)
    total += 4 * config.batch_size * config.model.embedding_dim * len(store.features) * _LAYERS
    total += scoring_memory(config, store)
    if config.out is not None:
        total += rows + min(SHARD_BYTES, total)
    return total


def scoring_memory(config: TrainConfig, store: Store) -> int:
    """Bytes that labels and logits will take, and the figures that are made of them.

    Raises:
        ConfigError: There is nothing to train on, or to score.
    """
    end = min(store.num_samples, config.max_samples or store.num_samples)
    trained, (start, stop) = ranges(config, store, end)
    feature = bucket_feature(store, config.popularity_feature)
    rows = 0 if feature is None else store.one_hot[feature].num_rows
    kept = trained[1] - trained[0] if config.mode == "prequential" else stop - start
    return 8 * kept + max(_SCORED_BYTES * (stop - start), _SCORED_ROW_BYTES * rows)  # one after the other


def _policy_memory(policy: PolicyBaseConfig, rows: int, weights: int, store: Store, *, moments: bool) -> int:
    """Bytes that a policy will take.

    Args:
        policy: Its configuration.
        rows: Rows of all tables.
        weights: Bytes of the model.
        store: The data.
        moments: Whether the optimizer keeps moments, which ``saturation`` reads.
    """
    tail = 2 * rows if getattr(policy, "protect_tail", 0) else 0
    match policy:
        case CombineConfig():
            parts = (policy.inputs, policy.rows)
            return sum(_policy_memory(part, rows, weights, store, moments=moments) for part in parts)
        case GuardConfig():  # a copy of the model, and what the policy inside takes
            return weights + _policy_memory(_INSIDE[policy.policy], rows, weights, store, moments=moments)
        case ImportanceConfig(score="scout"):
            return 16 * ((1 << policy.bits) + 1 + store.num_dense)
        case SaturationConfig():
            return rows * (_POLICY_ROW_BYTES + (0 if moments else _TRAIL_BYTES))
        case PsseConfig(scores="sketch"):
            return tail + 2 * rows + 8 * policy.sketch_depth * policy.sketch_width + 16 * policy.sketch_heavy
        case SlipstreamConfig(mode="periodic"):  # counts, marks and places of hot rows, while others are chosen
            return tail + 40 * rows + min(policy.hot_bytes, weights)
        case SlipstreamConfig() | OrderConfig():  # the choice of hot rows, and the order of the samples
            return tail + 22 * rows + min(policy.hot_bytes, weights) + 18 * store.num_samples
        case _:
            return tail + (_POLICY_ROW_BYTES * rows if build_policy(policy).skips_rows else 0)


def in_words(size: int) -> str:
    """Bytes as people read them: 4 kB, 35.2 MB, 1.25 GB."""
    if size < 10**5:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e6:.1f} MB" if size < 10**9 else f"{size / 1e9:,.2f} GB"


def check_memory(config: TrainConfig, store: Store) -> int:
    """The estimate.

    Raises:
        ConfigError: It is above ``config.max_memory``.
    """
    needed = estimate_memory(config, store)
    if config.max_memory is not None and needed > config.max_memory:
        raise ConfigError(
            f"the training needs about {in_words(needed)} of memory, max_memory is {in_words(config.max_memory)}",
            remedy="use fewer samples, a smaller embedding_dim, rowwise_adagrad, min_frequency or hash_rows in prepare "
            "or raise it",
        )
    return needed
