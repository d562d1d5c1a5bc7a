"""What ``on_skip="catch_up"`` means where a table's gradient is dense: all rows are caught up, then all are stepped.

Missed steps decay weights at the rate of the step that catches up, here as in rows' updates: exact for a constant rate.
Where the rate falls, rows that waited are decayed less than they would have been step by step; where it rises, more.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from slipstream.kernels.reference import wrap_step
from slipstream.kernels.types import Rule, UpdateSettings


def catch_up_all(weight: Tensor, state: dict[str, Any], names: tuple[str, ...], settings: UpdateSettings) -> None:
    """Decays moments and, where that is decoupled, weights of all rows for the steps that each has missed.

    Weights at the rate of the next step, whatever it was in those: ``(1 - lr * weight_decay) ** missed``.

    Args:
        weight: The table's, [R, D].
        state: Its state, with ``last_step`` and ``step``, the steps done.
        names: Of the moments in it.
        settings: Of the next step.
    """
    waited = wrap_step(int(state["step"]) - state["last_step"].long()).clamp_(min=0).double().unsqueeze(1)
    if settings.decoupled:
        weight.mul_(((1 - settings.lr * settings.weight_decay) ** waited).to(weight.dtype))
    if settings.rule in (Rule.SGD, Rule.ADAM):
        for name, decay in zip(names, (settings.beta1, settings.beta2), strict=False):
            if state.get(name) is not None:
                state[name].mul_((decay**waited).to(state[name].dtype))
    note_caught_up(state)


def note_caught_up(state: dict[str, Any]) -> None:
    """Notes that all rows have taken part in the step that was the last."""
    state["last_step"].fill_(wrap_step(int(state["step"])))
