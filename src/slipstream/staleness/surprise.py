"""Surprise: how far a cheap model's prediction is from the label of an input that the model has not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.kernels import registry
from slipstream.staleness.compiled import factor_for_sum


def in_proportion(score: Tensor, floor: float, total: float) -> Tensor:
    """Probabilities in proportion to a score, within [floor, 1], that add up to ``total`` as nearly as they can.

    Args:
        score: float32 [B], 0 or more.
        floor: Least probability.
        total: Their sum.

    Returns:
        float32 [B].
    """
    factor = factor_for_sum(score.numpy(), floor, total)
    return (score * factor).clamp_(floor, 1.0)


def log_losses(probability: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each prediction, nats, float32 [B]."""
    clamped = probability.clamp(1e-7, 1.0 - 1e-7)
    return torch.nn.functional.binary_cross_entropy(clamped, labels, reduction="none")


class Scout:
    """An on-line logistic regression over an input's ids and dense columns, learning from every input.

    [ours] Ids of all features share ``2^bits`` slots by a hash: two ids may meet, and the memory, 16 bytes a slot,
    does not grow with the tables. The scout learns from no input of a batch before it has predicted all of them.

    Args:
        bits: Slots are ``2^bits``, 8 to 28.
        lr: Adagrad's learning rate.

    Raises:
        ConfigError: A setting is out of range.
    """

    def __init__(self, *, bits: int = 21, lr: float = 0.1) -> None:
        if not 8 <= bits <= 28:
            raise ConfigError(f"bits must be 8 to 28, got {bits}")
        if not 0.0 < lr < float("inf"):
            raise ConfigError(f"lr must be above 0, got {lr}")
        self.bits, self.lr = bits, lr
        self.table: Tensor | None = None
        self.inputs = 0
        """Inputs that it has predicted."""
        self.loss = 0.0
        """Sum of their log-losses, each predicted before learning from it, nats."""

    def predict_and_learn(
        self,
        ids: Tensor,
        bags: Sequence[tuple[Tensor, Tensor]],
        dense: Tensor,
        labels: Tensor,
        learn: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predicts all inputs, then learns from them: no label tells on another input of the batch.

        Args:
            ids: int32 or int64 [B, F].
            bags: For each multi-hot feature values [N] and offsets [B + 1].
            dense: float32 [B, n].
            labels: float32 [B] in [0, 1].
            learn: bool [B], which inputs to learn from; None: all.

        Returns:
            float32 [B] probabilities, and float32 [B] how often the input's rarest row was seen before.

        Raises:
            ConfigError: A label is outside [0, 1], a dense value is not a finite number, or the number of dense columns
                has changed; nothing was learned then.
        """
        least, most = labels.aminmax() if labels.numel() else (0.0, 0.0)
        if not (float(least) >= 0.0 and float(most) <= 1.0):
            raise ConfigError("surprise needs labels in [0, 1]", remedy="use another policy, or binary labels")
        # The sum is quick, and finite only if every value is; one that is not may have overflowed.
        if not math.isfinite(float(dense.sum())) and not bool(dense.isfinite().all()):
            raise ConfigError("surprise needs dense values that are finite numbers", remedy="fill or drop the others")
        if self.table is None:
            self.table = torch.zeros((1 << self.bits) + 1 + dense.shape[1], 4)
        elif self.table.shape[0] != (1 << self.bits) + 1 + dense.shape[1]:
            known = self.table.shape[0] - (1 << self.bits) - 1
            raise ConfigError(f"inputs have {dense.shape[1]} dense columns, those before had {known}")
        slots, starts = registry.hash_lookups(ids, bags, self.bits)
        labels = labels.to(torch.float32).contiguous()
        learn = torch.ones_like(labels, dtype=torch.bool) if learn is None else learn
        probability, seen = registry.scout(self.table, slots, starts, dense.contiguous(), labels, learn, self.lr)
        self.inputs += labels.numel()
        self.loss += float(log_losses(probability, labels).sum())
        return probability, seen

    def state_dict(self) -> dict[str, Any]:
        """Weights, counts and the running loss."""
        return {"table": self.table, "inputs": self.inputs, "loss": self.loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state.

        Raises:
            ConfigError: The state is of a scout with another number of slots.
        """
        table: Tensor | None = state["table"]
        if table is not None and not 0 < table.shape[0] - (1 << self.bits) <= 1 << self.bits:
            raise ConfigError(
                f"the state's scout has {table.shape[0]} rows, which are not those of 2^{self.bits} slots",
                remedy="set bits as it was when the state was saved",
            )
        self.table = None if table is None else table.clone()
        self.inputs, self.loss = int(state["inputs"]), float(state["loss"])
