"""What the systems' configurations share."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from slipstream.errors import ConfigError, first_problem
from slipstream.models import DLRMConfig
from slipstream.training import TrainConfig

HOT_BYTES = 256 << 20
"""Memory of the accelerator for hot rows, where none is set. [code]"""


def published_dlrm(base: TrainConfig) -> DLRMConfig:
    """DLRM without our first-order part, rows of a bag summed; widths and row size as set if ``base`` has a DLRM.

    Otherwise those of Criteo Kaggle: 16 elements a row, MLPs 13-512-256-64-16 and 512-256-1. [paper]
    """
    model = base.model if isinstance(base.model, DLRMConfig) else DLRMConfig()
    return model.model_copy(update={"first_order": False, "pooling": "sum"})


def plain_sgd(base: TrainConfig) -> dict[str, Any]:
    """SGD without momentum, decay or clipping at the learning rates of ``base``."""
    return {"name": "sgd", "lr": base.optimizer.lr, "embedding_lr": base.optimizer.embedding_lr}


def changed(base: TrainConfig, **settings: Any) -> TrainConfig:
    """``base`` with other settings, checked.

    Raises:
        ConfigError: They do not fit together.
    """
    kept = {name: getattr(base, name) for name in TrainConfig.model_fields}
    try:
        return TrainConfig.model_validate(kept | settings)
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from error
