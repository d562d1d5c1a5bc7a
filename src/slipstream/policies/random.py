"""Random skipping: the control that every policy has to beat at equal compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from slipstream.policies.base import OPEN, Gated, Policy, PolicyBaseConfig, share_in_range, validated
from slipstream.staleness import TailInputs

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
    protect_tail: int = Field(default=0, ge=0, le=255)
    """``inputs``: inputs with a row looked up fewer than this many times are kept before others; 0 protects none."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.protect_tail and self.level == "rows":
            raise ValueError("protect_tail belongs to level=inputs")
        return self


class Random(Policy):
    """Keeps each input, or does each row update, with the same probability.

    Inputs are kept with probability ``budget``. The :class:`~slipstream.policies.Skipper` weighs them 1 / ``budget``
    (InfoBatch's rescaling, without its selection by loss) times the share kept so far: about 1 each, so the expected
    gradient of a batch is that of the full data, and the learning rate keeps its meaning. [ours]

    Rows get the gate ``round(256 · budget)``, drawn anew for each row and step; a gated update is lost, not rescaled.
    [ours] Shares finer than 1/256 cannot be told apart, and less than 1/256 counts as 1/256.

    ``protect_tail`` [ours] keeps inputs that touch a rare row as long as they take at most half of the budget, and
    leaves out more of the others instead, so that the budget is met; weights make up for the difference. It is off by
    default: random skipping is the control that other policies are judged against.

    Args:
        budget: Share of inputs trained on, or of row updates done; in (0, 1].
        level: ``inputs`` or ``rows``.
        protect_tail: Lookups below which a row's inputs are kept before others, 0 to 255.

    Raises:
        ConfigError: A setting is out of range.
    """

    name = "random"
    decides_alone = True

    def __init__(self, budget: float = 0.5, *, level: Level = "inputs", protect_tail: int = 0) -> None:
        self.config = validated(RandomConfig, {"budget": budget, "level": level, "protect_tail": protect_tail})
        self._tail = TailInputs(protect_tail) if protect_tail else None
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
        self.config = validated(RandomConfig, self.config.model_dump() | {"budget": budget})
        self._set_gates()

    def keep_probability(self, batch: Batch) -> Tensor | None:
        """``budget`` for each input, or more for those of the tail; None at the row level and at a budget of 1."""
        rare = None if self._tail is None else self._tail.pass_by(batch.inputs)
        budget, size = self.config.budget, len(batch)
        if not self.skips_inputs or budget == 1.0:
            return None
        of_tail = 0 if rare is None else int(torch.count_nonzero(rare))
        if rare is None or not of_tail or of_tail == size:
            return torch.full((size,), budget)
        # Half of the budget at most, but never a smaller share than the others get.
        share = min(1.0, max(budget, 0.5 * budget * size / of_tail))
        others = (budget * size - share * of_tail) / (size - of_tail)
        return torch.where(rare, share, others)

    def warm_up(self) -> None:
        """Loads the counting of the tail."""
        if self._tail is not None:
            self._tail.warm_up()

    def state_dict(self) -> dict[str, Any]:
        """Counts of the tail, if it is protected."""
        return {} if self._tail is None else self._tail.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state."""
        if self._tail is not None:
            self._tail.load_state_dict(state)

    def continue_from(self, state: Mapping[str, Any], rows: Mapping[str, int]) -> None:
        """Counts of the tail go on, if there are any; gates are those of the budget of now, for new rows, too."""
        if state:
            self.load_state_dict(state)
        self._set_gates()

    def report(self) -> dict[str, Any]:
        """Budget and level."""
        report: dict[str, Any] = {"budget": self.config.budget, "level": self.config.level}
        return report if self._tail is None else report | {"protect_tail": self.config.protect_tail}
