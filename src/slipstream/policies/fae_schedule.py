"""FAE's scheduler: how long runs of cold and of hot inputs are, adapted by what the runs do to the test loss.

The article interleaves hot and cold runs and adapts their length by the test loss, shorter when it rises, longer when
it keeps falling. [paper] All numbers, and what "keeps" means, are ours where the text was not at hand. [ours]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from slipstream.errors import ConfigError
from slipstream.restored import finite_number, whole_number

LEAST = 0.01
"""The shortest run, as a share of the inputs of its kind."""


class Rate:
    """The share of all cold (and of all hot) inputs that a run takes.

    Halved, to ``LEAST`` at least, when the test loss is above that at the transition before; doubled, to all at most,
    when it has not risen at ``patience`` transitions in a row.

    Args:
        share: That of the first runs, in (0, 1].
        patience: Transitions without a rise before runs get longer.
    """

    def __init__(self, share: float, patience: int) -> None:
        self.share, self.patience = share, patience
        self._last: float | None = None
        self._calm = 0

    def transition(self, test_loss: float) -> float:
        """Takes note of the test loss between two runs; returns the share for the next."""
        if self._last is not None and test_loss > self._last:
            self.share, self._calm = max(self.share / 2, LEAST), 0
        elif self._last is not None:
            self._calm += 1
            if self._calm == self.patience:
                self.share, self._calm = min(2 * self.share, 1.0), 0
        self._last = test_loss
        return self.share

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"share": self.share, "last": self._last, "calm": self._calm}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state."""
        self.share, self._calm = finite_number(state, "share", above=0.0), whole_number(state, "calm")
        self._last = None if state["last"] is None else float(state["last"])
        if self.share > 1.0:
            raise ConfigError(f"the state's share is {self.share}, above 1")


class Runs:
    """Hands out the inputs of an epoch in runs: cold, hot, cold, hot, until both are used up.

    A run holds whole batches, one at least; the last of its kind takes what is left. When one kind is used up the other
    is left in one run. [ours]

    Args:
        cold: int64, positions.
        hot: int64, positions.
        batch_size: Inputs of a step.
        rate: How long runs are; goes on over the epochs.
    """

    def __init__(self, cold: Tensor, hot: Tensor, batch_size: int, rate: Rate) -> None:
        self._kinds, self._batch_size, self.rate = (cold, hot), batch_size, rate
        self._taken = [0, 0]
        self._turn = 0
        self.handed_out = 0
        """Runs so far, all epochs together."""

    def next(self, test_loss: float) -> Tensor | None:
        """The next run, int64; None at the end of an epoch, and then the next begins.

        Args:
            test_loss: The model's loss on the test samples now.
        """
        left = [kind.numel() - taken for kind, taken in zip(self._kinds, self._taken, strict=True)]
        if not any(left):
            self._taken, self._turn = [0, 0], 0
            return None
        share = self.rate.transition(test_loss)
        kind = self._turn if left[self._turn] else 1 - self._turn
        items, taken = self._kinds[kind], self._taken[kind]
        batches = max(1, round(share * items.numel() / self._batch_size))
        size = left[kind] if not left[1 - kind] else min(batches * self._batch_size, left[kind])
        self._taken[kind], self._turn = taken + size, 1 - kind
        self.handed_out += 1
        return items[taken : taken + size]

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, between two runs."""
        counters = [*self._taken, self._turn, self.handed_out]
        return {"rate": self.rate.state_dict(), "counters": counters, "kinds": list(self._kinds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state."""
        self.rate.load_state_dict(state["rate"])
        *self._taken, self._turn, self.handed_out = (
            whole_number(state["counters"], place, of="counters ") for place in range(4)
        )
        cold, hot = state["kinds"]
        last = max((int(kind.max()) for kind in self._kinds if len(kind)), default=-1)
        for kind in (cold, hot):
            fits = kind.dtype == torch.int64 and kind.dim() == 1
            if not fits or (len(kind) and not 0 <= int(kind.min()) <= int(kind.max()) <= last):
                raise ConfigError("the state's runs are of other inputs")
        if self._turn > 1 or any(taken > len(kind) for taken, kind in zip(self._taken, (cold, hot), strict=True)):
            raise ConfigError("the state's runs have handed out more inputs than there are")
        self._kinds = (cold, hot)


def without(items: Tensor, left_out: Tensor) -> Tensor:
    """Those of ``items`` that are not in ``left_out``, in their order."""
    return items[~torch.isin(items, left_out)]
