"""Random skipping: the control that every policy has to beat at equal compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor

from slipstream.policies.base import OPEN, Gated, Policy, PolicyBaseConfig, share_in_range, validated

if TYPE_CHECKING:
    from slipstream.data.batch import Batch

Level = Literal["inputs", "rows"]


class RandomConfig(PolicyBaseConfig):
    """Random skipping."""

    name: Literal["random"] = "random"
    budget: Annotated[float, AfterValidator(share_in_range("budget"))] = 0.5
    """Share of the inputs that are trained on, or of the row updates that are done; in (0, 1]."""
    level: Level = "inputs"
    """``inputs`` leaves out whole inputs, ``rows`` the updates of rows by gates."""


class Random(Policy):
    """Keeps each input, or does each row update, with the same probability.

    Inputs are kept with probability ``budget``. The :class:`~slipstream.policies.Skipper` weighs them 1 / ``budget``
    (InfoBatch's rescaling, without its selection by loss) times the share kept so far: about 1 each, so the expected
    gradient of a batch is that of the full data, and the learning rate keeps its meaning. [ours]

    Rows get the gate ``round(256 · budget)``, drawn anew for each row and step; a gated update is lost, not rescaled.
    [ours] Shares finer than 1/256 cannot be told apart, and less than 1/256 counts as 1/256.

    Args:
        budget: Share of inputs trained on, or of row updates done; in (0, 1].
        level: ``inputs`` or ``rows``.

    Raises:
        ConfigError: A setting is out of range.
    """

    name = "random"

    def __init__(self, budget: float = 0.5, *, level: Level = "inputs") -> None:
        self.config = validated(RandomConfig, {"budget": budget, "level": level})
        self.skips_inputs = level == "inputs"
        self.skips_rows = level == "rows"
        self._tables: Mapping[str, Gated] = {}

    def attach(self, tables: Mapping[str, Gated], *, seed: int) -> None:
        """Sets the gates (rows) or nothing (inputs); the draws are the update kernel's and the Skipper's."""
        if self.skips_rows:
            self._tables = tables
            self._set_gates()

    def _set_gates(self) -> None:
        budget = self.config.budget
        gate = OPEN if budget == 1.0 else min(max(round(256 * budget), 1), OPEN - 1)
        for table in self._tables.values():
            if gate != OPEN or table.gate is not None:
                table.open_gate().fill_(gate)

    def set_budget(self, budget: float) -> None:
        """Changes the share."""
        self.config = validated(RandomConfig, {"budget": budget, "level": self.config.level})
        self._set_gates()

    def keep_probability(self, batch: Batch) -> Tensor | None:
        """``budget`` for each input; None at the row level and at a budget of 1."""
        if not self.skips_inputs or self.config.budget == 1.0:
            return None
        return torch.full((len(batch),), self.config.budget)

    def report(self) -> dict[str, Any]:
        """Budget and level."""
        return {"budget": self.config.budget, "level": self.config.level}
