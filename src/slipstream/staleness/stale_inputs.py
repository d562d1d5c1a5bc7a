"""Which hot inputs are stale: Slipstream's snapshot, sampling block and input classifier over all tables together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.kernels import registry
from slipstream.restored import checked_tensor
from slipstream.staleness.displacement import Displacement, Threshold, bisect_threshold
from slipstream.staleness.hot_rows import lookups_of

if TYPE_CHECKING:
    from slipstream.data.batch import Inputs


class Rule(NamedTuple):
    """From how many stale lookups on an input is dropped. With neither number: when all of its lookups are stale."""

    alpha: int | None = None
    """Stale lookups of the whole input; at least so many. [paper] Kaggle: all 26."""
    alpha_per_bag: int | None = None
    """Stale lookups in each bag; at least so many. [paper] Taobao: 4 in each of 3 sequences."""

    def check(self, most_lookups: int, num_bags: int, most_in_every_bag: int | None = None) -> None:
        """Raise ConfigError if the data has no input that the rule could drop.

        Args:
            most_lookups: Of any input.
            num_bags: Multi-hot features.
            most_in_every_bag: What each of them holds at most, of the one that holds least; None: not known.
        """
        if self.alpha is not None and self.alpha > most_lookups:
            raise ConfigError(f"alpha must be in [1, {most_lookups}], the lookups of an input, got {self.alpha}")
        if self.alpha_per_bag is not None and not num_bags:
            raise ConfigError("alpha_per_bag needs multi-hot features, the data has none", remedy="use alpha")
        if self.alpha_per_bag is not None and most_in_every_bag is not None and self.alpha_per_bag > most_in_every_bag:
            raise ConfigError(
                f"alpha_per_bag must be in [1, {most_in_every_bag}], what the shortest feature holds at most, "
                f"got {self.alpha_per_bag}"
            )


def stale_inputs(marks: Sequence[Tensor], inputs: Inputs, rule: Rule) -> Tensor:
    """Which inputs the rule drops, bool [B].

    Args:
        marks: uint8 [R_t] for each table (columns first, then bags), not 0 for stale rows.
        inputs: ids [B, F] and bags.
        rule: The rule.
    """
    dropped = torch.ones(inputs.ids.shape[0], dtype=torch.bool)
    columns = inputs.ids.shape[1]
    if rule.alpha_per_bag is not None:
        for mark, bag in zip(marks[columns:], inputs.bags, strict=True):
            dropped &= registry.count_marked([mark], inputs.ids[:, :0], [bag]) >= rule.alpha_per_bag
    if rule.alpha is not None:
        dropped &= registry.count_marked(marks, inputs.ids, inputs.bags) >= rule.alpha
    elif rule.alpha_per_bag is None:
        dropped &= registry.count_marked(marks, inputs.ids, inputs.bags) == lookups_of(inputs)
    return dropped


def load() -> None:
    """Loads the compiled code, so that no step has to wait for it."""
    one = torch.ones(1, dtype=torch.uint8)
    bag = (torch.zeros(1, dtype=torch.int32), torch.tensor([0, 1]))
    registry.count_marked([one, one], torch.zeros(1, 1, dtype=torch.int32), [bag])
    weight = torch.zeros(1, 2)
    Displacement(weight, one).measure(weight)


def checked_marks(marks: Sequence[Any], weights: Sequence[Tensor]) -> list[Tensor]:
    """The hot rows of a saved state, uint8 [R_t] for each table; none before they were looked for.

    Args:
        marks: What the state holds.
        weights: [R_t, D] for each table.

    Raises:
        ConfigError: They are of other tables.
    """
    if marks and len(marks) != len(weights):
        raise ConfigError(f"the state has hot rows of {len(marks)} tables, not {len(weights)}")
    pairs = zip(marks, weights, strict=False)
    return [checked_tensor(mark, "hot rows", (len(weight),), torch.uint8) for mark, weight in pairs]


class HotSnapshot:
    """The hot rows of all tables at one moment, what became of them, and the threshold found.

    Args:
        weights: float32 [R_t, D] for each table, columns first, then bags.
        hot: uint8 [R_t] for each table.
    """

    def __init__(self, weights: Sequence[Tensor], hot: Sequence[Tensor]) -> None:
        self.tables = [Displacement(weight, mark) for weight, mark in zip(weights, hot, strict=True)]
        self.found: Threshold | None = None
        """The threshold, once it was looked for."""
        self.stale: list[Tensor] = []
        """uint8 [R_t] for each table; empty while nothing may be dropped."""

    def decide(self, weights: Sequence[Tensor], sample: Inputs, rule: Rule, target: float, band: float) -> Threshold:
        """Measures the rows and finds T on a sample of hot inputs.

        If the band is never met no row is stale. [code]

        Args:
            weights: As they are now.
            sample: Hot inputs, one at least.
            rule: When an input is dropped.
            target: D, the share of the sample to drop.
            band: Half width around it.
        """
        for table, weight in zip(self.tables, weights, strict=True):
            table.measure(weight)

        def share(threshold: float) -> float:
            return float(stale_inputs(self._marks(threshold), sample, rule).float().mean())

        self.found = bisect_threshold(share, target, band)
        self._mark()
        return self.found

    def _marks(self, threshold: float) -> list[Tensor]:
        return [table.stale(threshold) for table in self.tables]

    def _mark(self) -> None:
        found = self.found
        self.stale = [] if found is None or found.value is None else self._marks(found.value)

    @property
    def num_stale(self) -> int:
        """Stale rows."""
        return sum(int(torch.count_nonzero(mark)) for mark in self.stale)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, dicts and lists of them."""
        state: dict[str, Any] = {"tables": [table.state_dict() for table in self.tables]}
        found = self.found
        if found is not None:
            state |= {"share": found.share, "steps": found.steps}
            state |= {} if found.value is None else {"threshold": found.value}
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any], weights: Sequence[Tensor]) -> HotSnapshot:
        """What ``state_dict`` saved.

        Raises:
            ConfigError: The state is of other tables.
        """
        self = cls.__new__(cls)
        if len(state["tables"]) != len(weights):
            raise ConfigError(f"the snapshot is of {len(state['tables'])} tables, not {len(weights)}")
        pairs = zip(state["tables"], weights, strict=True)
        self.tables = [Displacement.from_state(table, weight) for table, weight in pairs]
        self.found = Threshold(state.get("threshold"), state["share"], state["steps"]) if "steps" in state else None
        self._mark()
        return self
