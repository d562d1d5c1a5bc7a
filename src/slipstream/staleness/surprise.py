"""Surprise: how far a cheap model's prediction is from the label of an input that the model has not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.kernels import registry
from slipstream.kernels import scout as scout_kernel
from slipstream.restored import finite_number, whole_number
from slipstream.staleness.compiled import factor_for_sum


def in_proportion(score: Tensor, floor: float, total: float) -> tuple[Tensor, float]:
    """Probabilities in proportion to a score, within [floor, 1], that add up to ``total`` as nearly as they can.

    Args:
        score: float32 [B], 0 or more.
        floor: Least probability.
        total: Their sum.

    Returns:
        float32 [B], and the factor: they are the scores times it, clamped.
    """
    factor = factor_for_sum(score.numpy(), floor, total)
    return (score * factor).clamp_(floor, 1.0), factor


class Skill:
    """What share of the labels' entropy a scout explains, of late.

    Args:
        memory: Inputs over which the past fades to 1/e.
    """

    def __init__(self, memory: int = 100_000) -> None:
        self.memory = memory
        self._scout = self._base = 0.0

    def add(self, loss: float, rate: float, labels: Tensor) -> None:
        """Counts a batch.

        Args:
            loss: Sum of the scout's log-losses, nats.
            rate: What :class:`BaseRate` predicted.
            labels: float32 [B] in [0, 1].
        """
        positive = float(labels.sum())
        base = -positive * math.log(rate) - (labels.numel() - positive) * math.log1p(-rate)
        fade = math.exp(-labels.numel() / self.memory)
        self._scout, self._base = self._scout * fade + loss, self._base * fade + base

    @property
    def explained(self) -> float:
        """1 - the scout's loss ÷ the base rate's; below 0 for a scout that does worse; 0 before the first batch."""
        return 1.0 - self._scout / self._base if self._base else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Both sums."""
        return {"scout": self._scout, "base": self._base}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state."""
        self._scout, self._base = finite_number(state, "scout"), finite_number(state, "base")


class BaseRate:
    """The share of positives of late: the scout that looks at no feature.

    Args:
        memory: Inputs over which the past fades to 1/e.
    """

    def __init__(self, memory: int = 100_000) -> None:
        self.memory = memory
        self._positive = self._total = 0.0

    def predict_and_learn(self, labels: Tensor) -> float:
        """The rate before these labels (one half before the first), then learns them.

        Args:
            labels: float32 [B] in [0, 1].

        Raises:
            ConfigError: A label is outside [0, 1]; nothing was learned then.
        """
        check_labels(labels)
        rate = (self._positive + 0.5) / (self._total + 1.0)
        fade = math.exp(-labels.numel() / self.memory)
        self._positive = self._positive * fade + float(labels.sum())
        self._total = self._total * fade + labels.numel()
        return rate

    def state_dict(self) -> dict[str, Any]:
        """Both sums."""
        return {"positive": self._positive, "total": self._total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state."""
        self._positive, self._total = finite_number(state, "positive"), finite_number(state, "total")


def check_labels(labels: Tensor) -> None:
    """Raise ConfigError unless every label is in [0, 1]."""
    least, most = labels.aminmax() if labels.numel() else (0.0, 0.0)
    if not (float(least) >= 0.0 and float(most) <= 1.0):
        raise ConfigError("surprise needs labels in [0, 1]", remedy="use another policy, or binary labels")


AT_ONCE = 512
"""Inputs that a scout predicts before it learns from them: of many more, popular ids would all be pushed one way by
the same prediction, and overshoot."""


class Scout:
    """An on-line logistic regression over an input's ids and dense columns, learning from every input.

    [ours] Ids of all features share ``2^bits`` slots by a hash: two ids may meet, and the memory, 16 bytes a slot,
    does not grow with the tables. The scout learns from no input before it has predicted its ``AT_ONCE`` neighbours.

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
        """Predicts inputs, then learns from them, ``AT_ONCE`` by ``AT_ONCE``: no label tells on its neighbours.

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
        labels, dense = labels.to(torch.float32).contiguous(), dense.contiguous()
        flaw = scout_kernel.flaw(dense, labels)
        if flaw == scout_kernel.BAD_LABEL:
            check_labels(labels)
        if flaw == scout_kernel.BAD_DENSE:
            raise ConfigError("surprise needs dense values that are finite numbers", remedy="fill or drop the others")
        if self.table is None:
            self.table = torch.zeros((1 << self.bits) + 1 + dense.shape[1], 4)
        elif self.table.shape[0] != (1 << self.bits) + 1 + dense.shape[1]:
            known = self.table.shape[0] - (1 << self.bits) - 1
            raise ConfigError(f"inputs have {dense.shape[1]} dense columns, those before had {known}")
        slots, starts = registry.hash_lookups(ids, bags, self.bits)
        parts: list[tuple[Tensor, Tensor]] = []
        size = labels.numel()
        for a in range(0, max(size, 1), AT_ONCE):
            b = min(a + AT_ONCE, size)
            first, last = int(starts[a]), int(starts[b])
            chosen = None if learn is None else learn[a:b]
            here = slots[first:last], starts[a : b + 1] - first, dense[a:b], labels[a:b]
            probability, seen, loss = registry.scout(self.table, *here, chosen, self.lr)
            parts.append((probability, seen))
            self.loss += loss
        self.inputs += size
        return parts[0] if len(parts) == 1 else (torch.cat([p for p, _ in parts]), torch.cat([s for _, s in parts]))

    def state_dict(self) -> dict[str, Any]:
        """Weights, counts and the running loss."""
        return {"table": self.table, "inputs": self.inputs, "loss": self.loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state.

        Raises:
            ConfigError: The state is of a scout with another number of slots.
        """
        table: Tensor | None = state["table"]
        if table is not None and (table.dtype != torch.float32 or table.dim() != 2 or table.shape[1] != 4):
            raise ConfigError("the state's scout is no float32 table of 4 columns")
        if table is not None and not 0 < table.shape[0] - (1 << self.bits) <= 1 << self.bits:
            raise ConfigError(
                f"the state's scout has {table.shape[0]} rows, which are not those of 2^{self.bits} slots",
                remedy="set bits as it was when the state was saved",
            )
        self.table = None if table is None else table.clone()
        self.inputs, self.loss = whole_number(state, "inputs"), finite_number(state, "loss")
