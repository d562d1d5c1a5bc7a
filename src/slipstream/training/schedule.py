"""Learning rates over a training: warm-up by steps, decay by the share of the data that has passed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from slipstream.training.config import Decay, ScheduleConfig


def factor(decay: Decay, done: float, final: float) -> float:
    """Share of the rate that is left.

    Args:
        decay: Its course.
        done: Share of the data that has passed, in [0, 1].
        final: What is left at the end.
    """
    done = min(max(done, 0.0), 1.0)
    if decay == "linear":
        return final + (1 - final) * (1 - done)
    if decay == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
    return 1.0


class Schedule:
    """Sets the rates of all groups before each step.

    Args:
        optimizers: Their groups carry ``tables`` as :func:`slipstream.optim.parameter_groups` makes them; the rates
            they have now are the full ones.
        config: The course.
        total_samples: Samples of the data that will pass.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], config: ScheduleConfig, total_samples: int) -> None:
        self.config = config
        self.total_samples = max(total_samples, 1)
        self._optimizers = tuple(optimizers)
        self._full = [float(group["lr"]) for group in self._groups()]
        self.dense_lr = self.embedding_lr = 0.0
        """Rates of the current step; 0 where there is no such group."""

    def _groups(self) -> list[dict[str, Any]]:
        # Looked up each time: load_state_dict puts others in their place.
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def set(self, step: int, samples: int) -> None:
        """Sets the rates.

        Args:
            step: Steps done.
            samples: Samples of the data that have passed before this step.
        """
        done = samples / self.total_samples
        warm = min((step + 1) / (self.config.warmup_steps + 1), 1.0)
        for group, full in zip(self._groups(), self._full, strict=True):
            decay = self.config.embedding if group["tables"] else self.config.dense or "constant"
            group["lr"] = full * warm * factor(decay, done, self.config.final)
            if group["tables"]:
                self.embedding_lr = group["lr"]
            else:
                self.dense_lr = group["lr"]
