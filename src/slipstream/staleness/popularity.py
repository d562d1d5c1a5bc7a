"""Popularity of a table's rows: how often training looks each of them up, exactly or with older accesses fading.

[summary] PSSE: "how often interactions touch it". The fading is [ours]: the summary names rapidly changing popularity
as an open question.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from slipstream.errors import ConfigError, IndexOutOfRange
from slipstream.kernels import registry
from slipstream.restored import copy_into, finite_number
from slipstream.staleness.compiled import count_exactly

_RESCALE_AT = 2.0**40
"""Increment at which the counts are scaled back: 2^40 leaves float32 room for 2^87 lookups, and a whole-table pass
comes once in 40 half-lives."""


class PopularityCounts(Protocol):
    """Counts of one table. ``scores`` are comparable between tables that were advanced alike."""

    scores: Tensor
    """[R] non-negative, int32 or float32."""

    def add(self, ids: Tensor) -> None:
        """Counts lookups: ids int32 or int64 [n], repeats allowed."""
        ...

    def advance(self, amount: float) -> None:
        """Lets ``amount`` steps (or samples: the unit of the half-life) pass."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state of the same table."""
        ...


_SAME_COUNTS = "load the state of a run with the same tables and the same half_life"


class ExactCounts:
    """Lookups of each row so far.

    int32 [R]: float32 would stop at 2^24, which a small field's row reaches within an epoch. At 2^31 - 1 they stop.

    Args:
        num_rows: R.
        device: Where the counts are: lookups there are counted there.
    """

    def __init__(self, num_rows: int, device: torch.device | None = None) -> None:
        self.scores = torch.zeros(num_rows, dtype=torch.int32, device=device)

    def add(self, ids: Tensor) -> None:
        """Counts lookups: ids int32 or int64 [n], repeats allowed.

        Raises:
            IndexOutOfRange: An id is outside the table (on a GPU: at a later step).
        """
        ids = ids.to(self.scores.device)
        if self.scores.device.type != "cpu":
            registry.count(self.scores, ids, 1.0)
            return
        outside = count_exactly(self.scores.numpy(), ids.reshape(-1).numpy())
        if outside:
            raise IndexOutOfRange(f"{outside} ids are outside a table of {self.scores.numel()} rows")

    def advance(self, amount: float) -> None:
        """Exact counts do not fade."""

    def state_dict(self) -> dict[str, Any]:
        """``scores``."""
        return {"scores": self.scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state of the same table.

        Raises:
            ConfigError: The state is of a table with other rows.
        """
        copy_into(self.scores, state["scores"], "popularity", remedy=_SAME_COUNTS)


class DecayedCounts:
    """Exponentially decayed lookups: an access counts 1 now, ½ after a half-life, ¼ after two.

    No pass over the table fades old accesses. Instead new accesses count for more: an increment grows by 2^(1 /
    half-life) per unit, which leaves all ratios as if the old had faded. ``scores`` are in units of the increment;
    :meth:`value` divides it out. float32 [R]: a row looked up more than 2^24 times within about a half-life stops
    growing, far above any threshold that matters.

    Args:
        num_rows: R.
        half_life: Units after which an access counts half, above 0.
        device: Where the counts are: lookups there are counted there.

    Raises:
        ConfigError: The half-life is not above 0.
    """

    def __init__(self, num_rows: int, half_life: float, device: torch.device | None = None) -> None:
        if not 0.0 < half_life < math.inf:
            raise ConfigError(f"half_life must be in (0, inf), got {half_life}")
        self.scores = torch.zeros(num_rows, dtype=torch.float32, device=device)
        self.half_life = half_life
        self.increment = 1.0

    def add(self, ids: Tensor) -> None:
        """Counts lookups: ids int32 or int64 [n], repeats allowed."""
        registry.count(self.scores, ids.to(self.scores.device), self.increment)

    def advance(self, amount: float) -> None:
        """Lets ``amount`` units pass."""
        exponent = math.log2(self.increment) + amount / self.half_life
        if exponent < math.log2(_RESCALE_AT):
            self.increment = 2.0**exponent
            return
        self.scores.mul_(2.0 ** -min(exponent, 1_000.0))
        self.increment = 1.0

    def value(self) -> Tensor:
        """The decayed counts themselves, float32 [R] (a copy)."""
        return self.scores / self.increment

    def state_dict(self) -> dict[str, Any]:
        """``scores`` and ``increment``."""
        return {"scores": self.scores, "increment": self.increment}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state of the same table.

        Raises:
            ConfigError: The state is of a table with other rows.
        """
        copy_into(self.scores, state["scores"], "popularity", remedy=_SAME_COUNTS)
        self.increment = finite_number(state, "increment", above=0.0)


def make_counts(num_rows: int, half_life: float | None, device: torch.device | None = None) -> PopularityCounts:
    """Decayed counts, or exact ones without a half-life."""
    return ExactCounts(num_rows, device) if half_life is None else DecayedCounts(num_rows, half_life, device)
