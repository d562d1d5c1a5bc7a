"""What a training tells its listeners while it runs: losses, rates and counts, and what the policy decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from slipstream.errors import NonFiniteError
from slipstream.kernels import registry
from slipstream.restored import finite_number
from slipstream.training.events import PolicyMoved, StepDone, tell

if TYPE_CHECKING:
    from slipstream.training.loop import Trainer


class Reports:
    """Collects the losses of steps, and reports them every ``log_every`` steps.

    Args:
        trainer: The training.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._losses: list[float | Tensor] = []  # since the last report; on a GPU nobody has waited for them

    def add(self, loss: float | Tensor) -> None:
        """Takes the loss of the step that was just done.

        Raises:
            NonFiniteError: A loss that nobody has looked at yet is not finite.
        """
        self._losses.append(loss)
        if self._trainer.steps % self._trainer.config.log_every == 0:
            self.flush()

    def flush(self) -> None:
        """Reports the losses since the last report, if there are any.

        Raises:
            NonFiniteError: See :meth:`add`.
        """
        if not self._losses:
            return
        trainer = self._trainer
        values = self.losses()
        if not trainer.savable:
            first = trainer.steps - len(values) + 1
            for step, value in enumerate(values, start=first):
                if not math.isfinite(value):
                    raise NonFiniteError(f"the loss is {value} at step {step}", remedy="lower the learning rates")
            if trainer.sender.device.type != "cpu":
                registry.check_errors(trainer.sender.device)
        self._losses.clear()
        schedule, skipper, seconds = trainer.schedule, trainer.skipper, trainer.training.seconds
        event = StepDone(
            trainer.steps,
            trainer.samples,
            sum(values) / len(values),
            schedule.dense_lr,
            schedule.embedding_lr,
            seconds,
            skipper.inputs_seen,
            skipper.inputs_kept,
            *skipper.row_updates(),
            trainer.phase_seconds,
        )
        tell(trainer.listeners, event)

    def moves(self) -> None:
        """Reports what the policy decided by itself since it was last asked."""
        policy = self._trainer.skipper.policy
        for move in policy.take_moves():
            tell(self._trainer.listeners, PolicyMoved(policy.name, move, self._trainer.training.seconds))

    def losses(self) -> list[float]:
        """Those since the last report."""
        return [float(loss) for loss in self._losses]

    def load(self, losses: Sequence[float]) -> None:
        """Takes over what :meth:`losses` gave.

        Raises:
            ConfigError: A loss is not a finite number.
        """
        self._losses = [finite_number(losses, i, of="losses ") for i in range(len(losses))]
