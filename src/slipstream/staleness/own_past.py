"""What the last doubling of the data taught the model: its loss against that of a copy from when it had seen half.

[ours] Both predict the same inputs before the model trains on them, so that what makes inputs hard or easy, and what
makes batches differ, cancels. With n the inputs trained on and the copy taken at n / r, the mean difference ÷ log2(r)
is what a doubling of the data was worth: the slope of the model's own learning curve, averaged over the way from n / r
to n. Where the curve flattens in log n, as learning curves do, that is at least the slope from n on. Where data drifts
the copy is old as well as short of data, which makes it look worse than a model that had trained on a random share.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import copy
import math
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slipstream.errors import ConfigError
from slipstream.restored import LARGEST, whole_number

if TYPE_CHECKING:
    from slipstream.data.batch import Batch

Losses = Callable[[nn.Module, "Batch"], Tensor]
"""The loss of each sample of a batch under a model, float32 [B], not weighted."""


class EarlierSelf:
    """The model as it was some time ago. Memory: the weights once more, without optimizer states.

    Args:
        model: The model, which is read and never written.
        losses: Its loss of single samples.
    """

    def __init__(self, model: nn.Module, losses: Losses) -> None:
        self._model, self._losses = model, losses
        self._copy: nn.Module | None = None

    @property
    def taken(self) -> bool:
        """Whether there is a copy."""
        return self._copy is not None

    def take(self) -> None:
        """Copies the model as it is now.

        Raises:
            ConfigError: It cannot be copied.
        """
        self._copy = None  # before there is another
        self._copy = _copied(self._model)

    def losses(self, batch: Batch) -> Tensor:
        """The copy's losses, float32 [B] on the CPU; nothing is learned, and no draw of the training is used up."""
        assert self._copy is not None
        self._copy.train(self._model.training)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return self._losses(self._copy, batch).float().cpu()

    def state_dict(self) -> dict[str, Any]:
        """The copy's tensors."""
        return {} if self._copy is None else {"tensors": [tensor.detach() for tensor in _tensors(self._copy)]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a copy."""
        self._copy = None
        if "tensors" in state:
            self._copy = _copied(self._model)
            with torch.no_grad():
                for mine, saved in zip(_tensors(self._copy), state["tensors"], strict=True):
                    if mine.shape != saved.shape:  # dtypes may differ: a model may be cast after its state was loaded
                        raise ConfigError("the state's copy is of another model")
                    mine.copy_(saved)


def _copied(model: nn.Module) -> nn.Module:
    """All of the model: tables in host memory are neither parameters nor buffers."""
    # What a module keeps of a forward pass, for a loss of its own say, belongs to that pass's graph: no deepcopy.
    memo: dict[int, Any] = {
        id(tensor): tensor.detach().clone()
        for module in model.modules()
        for tensor in _kept_by(module)
        if not tensor.is_leaf
    }
    try:
        return copy.deepcopy(model, dict(memo))  # which it fills, with halves where it fails
    except (RuntimeError, TypeError, copy.Error, pickle.PicklingError) as error:
        raise _what_has_no_copy(model, memo) or error from None


def _kept_by(module: nn.Module) -> Iterator[Tensor]:
    """The tensors among a module's attributes, and in those that are dictionaries, lists or tuples."""
    for value in vars(module).values():
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        yield from (tensor for tensor in inside if isinstance(tensor, Tensor))


_OF_MODULES = ("_parameters", "_buffers", "_modules")


def _what_has_no_copy(model: nn.Module, memo: dict[int, Any]) -> ConfigError | None:
    """Names the attribute that Python cannot copy; None if it is none's fault (memory, say)."""
    for name, module in model.named_modules():
        for attribute in [attribute for attribute in vars(module) if attribute not in _OF_MODULES]:
            try:
                copy.deepcopy(vars(module)[attribute], dict(memo))
            except (RuntimeError, TypeError, copy.Error, pickle.PicklingError) as error:
                return ConfigError(
                    f"the policy needs a copy of the model, and attribute {attribute!r} of module "
                    f"{name or '(the model itself)'} has none ({' '.join(str(error).split())})",
                    remedy="keep it outside the model, tensors detached, or use another policy",
                )
    return None


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


class Gain(NamedTuple):
    """What a doubling of the data was worth."""

    value: float
    """Fall of the loss (nats), or rise of AUC, a doubling."""
    error: float
    """Its standard error; inf with fewer than two measurements."""


_MOST = 1e9


class Window:
    """Paired measurements against one copy: a regression of the differences on log2(r), through the origin."""

    def __init__(self) -> None:
        self.count = 0
        self._xx = self._xy = self._yy = 0.0

    def add(self, doublings: float, difference: float) -> None:
        """A batch on which the copy was worse by ``difference``, log2(r) = ``doublings``; one that is NaN says nothing.

        Differences count up to a billion: squares of what a loss near 0 makes of them have no end.
        """
        if math.isnan(difference):
            return
        difference = min(max(difference, -_MOST), _MOST)
        self.count += 1
        self._xx += doublings * doublings
        self._xy += doublings * difference
        self._yy += difference * difference

    @property
    def gain(self) -> Gain:
        """The slope and its standard error, from the scatter of the batches."""
        if not self._xx:
            return Gain(0.0, math.inf)
        slope = self._xy / self._xx
        if self.count < 2:
            return Gain(slope, math.inf)
        rest = max(self._yy - slope * self._xy, 0.0) / (self.count - 1)
        return Gain(slope, math.sqrt(rest / self._xx))

    def state(self) -> list[float]:
        """Plain numbers."""
        return [self.count, self._xx, self._xy, self._yy]

    def load(self, state: list[float]) -> None:
        """Takes over what :meth:`state` gave; sums without bounds, which earlier versions could have, say nothing.

        Raises:
            ConfigError: No measurements have these sums.
        """
        self.count = whole_number(state, 0, of="window ")
        self._xx, self._xy, self._yy = (float(part) for part in state[1:])
        if not all(abs(part) <= LARGEST for part in (self._xx, self._xy, self._yy)):
            self.count, self._xx, self._xy, self._yy = 0, 0.0, 0.0, 0.0
        if self._xx < 0.0 or self._yy < 0.0 or self._xy**2 > 1.001 * self._xx * self._yy + sys.float_info.min:
            raise ConfigError("the state's window has sums of squares that no measurements have")


def scores_of(losses: Tensor, labels: Tensor) -> npt.NDArray[np.float64]:
    """Logits from cross-entropies and labels of 0 and 1, [B]: the loss says how far on the wrong side of ±inf."""
    odds = np.log(np.expm1(np.clip(losses.double().numpy(), 1e-12, 700.0)))
    return np.where(labels.numpy() > 0.5, -odds, odds)


def weighted_auc(labels: npt.NDArray[Any], scores: npt.NDArray[np.float64], weights: npt.NDArray[Any]) -> float | None:
    """Chance that a positive is scored above a negative, both drawn by weight, ties half; None with one class only."""
    found, place = np.unique(scores, return_inverse=True)
    positive = np.bincount(place, np.where(labels > 0.5, weights, 0.0), found.size)
    negative = np.bincount(place, np.where(labels > 0.5, 0.0, weights), found.size)
    pairs = float(positive.sum() * negative.sum())
    if pairs <= 0.0:
        return None
    below = np.cumsum(negative) - 0.5 * negative
    return float(positive @ below) / pairs
