"""How much memory a training will take, before it takes it."""

from __future__ import annotations

import torch

from slipstream.data.store import Store
from slipstream.embedding import tables
from slipstream.errors import ConfigError
from slipstream.models import build_model
from slipstream.policies import build_policy
from slipstream.training.checkpoint.tensors import SHARD_BYTES
from slipstream.training.config import OptimizerName, TrainConfig

_STATES: dict[OptimizerName, int] = {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 0, "adam": 2, "adamw": 2}
"""Numbers that an optimizer keeps for each element of a table."""
_POLICY_ROW_BYTES = 8
"""Bytes a row that a policy of rows keeps: counts, gates, signals."""
_LAYERS = 6
"""Copies of a batch's vectors that a step holds at a time, gradients included: a rule of thumb."""


def estimate_memory(config: TrainConfig, store: Store) -> int:
    """Bytes that model, optimizer, policy, a step and the writing of checkpoints will take.

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
    if build_policy(config.policy).skips_rows:
        total += _POLICY_ROW_BYTES * rows
    total += 4 * config.batch_size * config.model.embedding_dim * len(store.features) * _LAYERS
    if config.mode == "prequential":
        total += 4 * store.num_samples
    if config.out is not None:
        total += rows + min(SHARD_BYTES, total)
    return total


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
            remedy="use a smaller embedding_dim, rowwise_adagrad, min_frequency or hash_rows in prepare, or raise it",
        )
    return needed
