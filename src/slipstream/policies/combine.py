"""Combine: an input policy and a row policy together, with one budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from slipstream.errors import ConfigError
from slipstream.policies.base import Gated, Policy, Progress, TrainingData, share_in_range

if TYPE_CHECKING:
    from slipstream.data.batch import Batch
    from slipstream.staleness.own_past import Losses


class Combine(Policy):
    """Leaves out inputs by one policy, and row updates of the inputs that are trained on by another ([ours]).

    The budget is the share of the full training's row updates that is left: the share of inputs kept times the share
    of their updates that is done. ``split`` says which part saves how much of it: inputs keep budget^split and rows
    budget^(1 - split), whose product is the budget. So 1 leaves all the saving to the inputs, and 0 to the rows.

    Signals: gated rows still appear in ``observe_lookups``; lookups of inputs left out do not, so the row policy sees
    the training that is left.

    Args:
        inputs: Skips inputs only (or nothing).
        rows: Skips row updates only (or nothing).
        budget: Share of both together, in (0, 1]; None: each keeps its own.
        split: Share of the saving, on a logarithmic scale, that is the inputs'; in [0, 1].

    Raises:
        ConfigError: A setting is out of range, a part does not skip what it is for, both plan an order, or a part's
            budget cannot be set.
    """

    name = "combine"

    def __init__(self, inputs: Policy, rows: Policy, *, budget: float | None = None, split: float = 0.5) -> None:
        if inputs is rows:
            raise ConfigError("policy 'combine': inputs and rows must be two policies")
        if inputs.skips_rows:
            raise ConfigError(
                f"policy 'combine': inputs={inputs.name!r} skips row updates, which is what rows is for",
                remedy="choose a policy that skips inputs only",
            )
        if rows.skips_inputs:
            raise ConfigError(
                f"policy 'combine': rows={rows.name!r} skips inputs, which is what inputs is for",
                remedy="one of rows alone: psse, saturation, subsampling, row_importance or random with level=rows",
            )
        if inputs.plans_order and rows.plans_order:
            raise ConfigError("policy 'combine': inputs and rows both plan the order of the data")
        if not 0.0 <= split <= 1.0:
            raise ConfigError(f"policy 'combine': split must be in [0, 1], got {split}")
        self.inputs, self.rows = inputs, rows
        self.parts = (inputs, rows)
        self.skips_inputs, self.skips_rows = inputs.skips_inputs, rows.skips_rows
        self.plans_order = inputs.plans_order or rows.plans_order
        self.follows_time = inputs.follows_time or rows.follows_time
        planner = inputs if inputs.plans_runs else rows
        self.plans_runs = planner.plans_runs
        if planner.plans_runs:
            self.test_positions, self.next_run = planner.test_positions, planner.next_run
        self.wants_losses = inputs.wants_losses or rows.wants_losses
        self.decides_alone, self.chooses_by_label = inputs.decides_alone, inputs.chooses_by_label
        self.split = split
        self.budget: float | None = None
        if budget is not None:
            self.set_budget(budget)

    def warm_up(self) -> None:
        """Warms up both."""
        for part in self.parts:
            part.warm_up()

    def check_length(self, batches: int) -> None:
        """Checks both: rows are left the batches of the inputs that are kept."""
        self.inputs.check_length(batches)
        kept = self.inputs.report().get("budget") if self.skips_inputs else None
        self.rows.check_length(math.ceil(kept * batches) if isinstance(kept, float) else batches)

    def plan(self, data: TrainingData) -> Tensor | None:
        """The order of the part that plans one."""
        orders = [order for order in (part.plan(data) for part in self.parts) if order is not None]
        if len(orders) > 1:
            raise ConfigError("policy 'combine': inputs and rows both plan the order of the data")
        return orders[0] if orders else None

    def attach(self, tables: Mapping[str, Gated], *, seed: int) -> None:
        """Attaches both, with the same seed: what they draw are different things."""
        for part in self.parts:
            part.attach(tables, seed=seed)

    def attach_model(self, model: nn.Module, losses: Losses) -> None:
        """Attaches both."""
        for part in self.parts:
            part.attach_model(model, losses)

    def keep_probability(self, batch: Batch) -> Tensor | None:
        """That of the input policy."""
        return self.inputs.keep_probability(batch) if self.skips_inputs else None

    def logit_offset(self, batch: Batch) -> Tensor:
        """Those of the input policy."""
        return self.inputs.logit_offset(batch)

    def observe_lookups(self, table: Gated, ids: Tensor) -> None:
        """Tells both."""
        for part in self.parts:
            part.observe_lookups(table, ids)

    def update_gates(self, progress: Progress) -> None:
        """Tells both; only the row policy sets gates."""
        for part in self.parts:
            part.update_gates(progress)

    def decides(self, progress: Progress) -> bool:
        """Whether one of them does."""
        return any(part.decides(progress) for part in self.parts)

    def observe_losses(self, batch: Batch, losses: Tensor) -> None:
        """Tells those that want losses."""
        for part in self.parts:
            if part.wants_losses:
                part.observe_losses(batch, losses)

    def take_moves(self) -> list[dict[str, Any]]:
        """Those of both."""
        return [move for part in self.parts for move in part.take_moves()]

    def set_budget(self, budget: float) -> None:
        """Splits the budget anew.

        Raises:
            ConfigError: It is out of range, or a part cannot follow.
        """
        try:
            share_in_range("budget")(budget)
        except ValueError as error:
            raise ConfigError(f"policy 'combine': {error}") from error
        self.inputs.set_budget(budget**self.split)
        self.rows.set_budget(budget ** (1.0 - self.split))
        self.budget = budget

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"inputs": self.inputs.state_dict(), "rows": self.rows.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the states of both."""
        self.inputs.load_state_dict(state["inputs"])
        self.rows.load_state_dict(state["rows"])

    def continue_from(self, state: Mapping[str, Any], rows: Mapping[str, int]) -> None:
        """Both go on."""
        self.inputs.continue_from(state["inputs"], rows)
        self.rows.continue_from(state["rows"], rows)

    def report(self) -> dict[str, Any]:
        """Budget, split, and the reports of both."""
        return {
            "budget": self.budget,
            "split": self.split,
            "inputs": {"policy": self.inputs.name, **self.inputs.report()},
            "rows": {"policy": self.rows.name, **self.rows.report()},
        }
