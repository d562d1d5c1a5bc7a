"""What the guard knows: what the last doublings of the data were worth to the model, and how well that is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from slipstream.errors import ConfigError
from slipstream.restored import whole_number
from slipstream.staleness.own_past import EarlierSelf, Gain, Losses, Window, scores_of, weighted_auc

if TYPE_CHECKING:
    from slipstream.data.batch import Batch

_ENOUGH = 6
"""Batches measured against one copy from which a decision may rest on them."""
_OF_A_DOUBLING = 24
"""Batches of each doubling that are measured where one in ``measure_every`` would be fewer."""
_RARELY = 4
"""Factor on the distance of measurements where skipping is out of the question."""
_DOUBLINGS = 3
"""Doublings that a decision looks back on."""
_NOTHING = Gain(0.0, math.inf)
_Pair = tuple[Gain, Gain]  # of the loss, of AUC


class Evidence:
    """Takes copies of the model as the inputs trained on double, and measures against the last one.

    Gains of the loss are relative to the loss of now. A decision rests on the copy before until enough is measured
    against the new one: what a doubling is worth falls where the curve flattens.

    Args:
        model: The model.
        losses: Its loss of single samples.
        measure_every: Batches from one measurement to the next.
        first_copy: Inputs trained on before the first copy.
        of_auc: Whether AUC is measured too.
    """

    def __init__(self, model: nn.Module, losses: Losses, *, measure_every: int, first_copy: int, of_auc: bool) -> None:
        self._past = EarlierSelf(model, losses)
        self._every, self._next, self._of_auc = measure_every, first_copy, of_auc
        self.open = True
        """Whether it goes on measuring."""
        self.rare = False
        """Whether it measures a quarter as often."""
        self.trained = 0
        """Inputs trained on."""
        self.measured = 0
        """Batches predicted by a copy."""
        self._gains: list[_Pair] = []  # of each doubling, the present one last
        self._windows = (Window(), Window())
        self._steps = self._copied_at = 0
        self._quarters = 0  # of the present doubling, looked at
        self._fresh = False

    @property
    def loss(self) -> Gain:
        """What the last doubling was worth, relative to the loss."""
        return self._gains[-1][0] if self._gains else _NOTHING

    @property
    def auc(self) -> Gain:
        """What it was worth, AUC."""
        return self._gains[-1][1] if self._gains else _NOTHING

    @property
    def enough(self) -> bool:
        """Whether three doublings have been measured."""
        return len(self._gains) >= _DOUBLINGS

    @property
    def settled(self) -> bool:
        """Whether half of a doubling was measured, or all of it: then more may be skipped; at any look less."""
        return self._quarters in (0, 2)

    @property
    def steepens(self) -> bool:
        """Whether one of the last two doublings was clearly worth more than the one before it."""
        return any(
            _grew(before[of], after[of])
            for before, after in pairwise(self._gains[-_DOUBLINGS:])
            for of in range(1 + self._of_auc)
        )

    @property
    def next(self) -> _Pair:
        """What the next doubling is expected to be worth at most, of the loss and of AUC.

        As much as the last; where the last was worth more than the one before, as much more again.
        """
        before, now = self._gains[-2:]
        return _no_less(now[0], before[0]), _no_less(now[1], before[1])

    def observe(self, batch: Batch, losses: Tensor) -> bool:
        """Takes note of a batch that is about to be trained on.

        Args:
            batch: B inputs.
            losses: float32 [B], the model's.

        Returns:
            Whether it is time to look: the inputs have grown by another quarter of what the copy had seen.

        Raises:
            ConfigError: AUC is wanted, and a label is neither 0 nor 1.
        """
        if self._past.taken and len(batch) and self._steps % self._distance(len(batch)) == 0:
            self._measure(batch, losses.float())
        self._steps += 1
        self.trained += len(batch)
        if self.trained >= self._next:
            return self._turn()
        quarters = 4 * (self.trained - self._copied_at) // self._copied_at if self._past.taken else 0
        if quarters <= self._quarters:
            return False
        self._quarters = quarters
        return self._conclude()

    def _distance(self, size: int) -> int:
        """Batches from one measurement to the next: a short doubling needs them as much as a long one."""
        dense = max(1, min(self._every, self._copied_at // (size * _OF_A_DOUBLING)))
        return dense * _RARELY if self.rare else dense

    def _measure(self, batch: Batch, losses: Tensor) -> None:
        doublings = math.log2(self.trained / self._copied_at)
        if doublings <= 0.0:
            return
        weights = batch.weights
        earlier = self._past.losses(batch)
        now = float((losses * weights).sum())
        if now > 0.0:
            self._windows[0].add(doublings, float(((earlier - losses) * weights).sum()) / now)
            self.measured += 1
        if self._of_auc:
            if bool(((batch.labels != 0) & (batch.labels != 1)).any()):
                raise ConfigError("policy 'guard': auc_tolerance needs labels of 0 and 1", remedy="set tolerance alone")
            labels, by = batch.labels.numpy(), weights.numpy()
            old = weighted_auc(labels, scores_of(earlier, batch.labels), by)
            new = weighted_auc(labels, scores_of(losses, batch.labels), by)
            if old is not None and new is not None:
                self._windows[1].add(doublings, new - old)

    def _conclude(self) -> bool:
        """Takes over what the present window says, if that is enough; until then the one before speaks for it."""
        if self._windows[0].count >= _ENOUGH and (not self._of_auc or self._windows[1].count >= _ENOUGH):
            pair = (self._windows[0].gain, self._windows[1].gain)
            if self._fresh:
                self._gains.append(pair)
            else:
                self._gains[-1] = pair
            self._fresh = False
        return self._past.taken

    def _turn(self) -> bool:
        """Ends a doubling: what it says, and a new copy."""
        decides = self._conclude()
        self._past.take()
        self._copied_at, self._next, self._quarters = self.trained, 2 * self.trained, 0
        self._fresh, self._windows = True, (Window(), Window())
        return decides

    def close(self) -> None:
        """Ends all measuring."""
        self.open = False

    def state_dict(self) -> dict[str, Any]:
        """The copy, the windows, and where they stand."""
        return {
            "past": self._past.state_dict(),
            "windows": [window.state() for window in self._windows],
            "gains": [[list(loss), list(auc)] for loss, auc in self._gains],
            "counters": [self._steps, self.trained, self.measured, self._copied_at, self._next, self._quarters],
            "flags": [self.open, self.rare, self._fresh],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state."""
        self._past.load_state_dict(state["past"])
        for window, saved in zip(self._windows, state["windows"], strict=True):
            window.load(saved)
        self._gains = [(Gain(*map(float, loss)), Gain(*map(float, auc))) for loss, auc in state["gains"]]
        counters = [whole_number(state["counters"], place, of="counters ") for place in range(6)]
        self._steps, self.trained, self.measured, self._copied_at, self._next, self._quarters = counters
        if self._past.taken and not 0 < self._copied_at <= self.trained:
            raise ConfigError(f"the state's copy was taken after {self._copied_at} of {self.trained} inputs")
        self.open, self.rare, self._fresh = (bool(flag) for flag in state["flags"])
        if self._past.taken and not self._fresh and not self._gains:
            raise ConfigError("the state has concluded nothing of its window, and says that it has")


def _grew(before: Gain, after: Gain) -> bool:
    """By more than a twentieth, and more than two standard errors."""
    rise = after.value - before.value
    return rise > 0.05 * abs(before.value) and rise > 2.0 * math.hypot(after.error, before.error)


def _no_less(now: Gain, before: Gain) -> Gain:
    rise = now.value - before.value
    if not rise > 0.0:
        return now
    return Gain(now.value + rise, math.hypot(now.error, before.error))
