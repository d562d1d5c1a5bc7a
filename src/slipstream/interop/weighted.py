"""Losses of other libraries, weighted as an input policy asks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from slipstream.errors import ConfigError
from slipstream.policies import Skipper


def weighted(loss: Callable[..., Tensor], skipper: Skipper) -> Callable[..., Tensor]:
    """A loss that multiplies each sample's part by the weight that the skipper gave it.

    For training steps that another library owns, and that call ``loss(prediction, target)`` or
    ``loss(prediction, target, reduction="mean")``. Outside of training (``torch.no_grad``) and for the policies that
    skip no inputs it is the loss as it was.

    Args:
        loss: A functional loss that takes ``reduction``, or a module with a ``reduction``; one value for each sample.
        skipper: Hands out the batches, one for each call of the loss.

    Returns:
        The loss; of the kind (module or function) that was given.

    Raises:
        ConfigError: The loss is a module that has no ``reduction``; in a call, if the number of values of the loss is
            not a multiple of the number of samples handed out, or if the Skipper corrects by offsets of the logits.
    """
    if not isinstance(loss, nn.Module):

        def call(*args: Any, reduction: str = "mean", **kwargs: Any) -> Tensor:
            return _reduced(loss(*args, reduction="none", **kwargs), reduction, skipper)

        return call
    if not isinstance(getattr(loss, "reduction", None), str):
        raise ConfigError(
            f"{type(loss).__name__} has no reduction that could be set to 'none'",
            remedy="compute the loss of each sample, and multiply by skipper.weights",
        )
    return _WeightedModule(loss, skipper)


class _WeightedModule(nn.Module):
    """A loss module with weights; it holds the skipper by a function, so that it is no part of the module."""

    def __init__(self, loss: nn.Module, skipper: Skipper) -> None:
        super().__init__()
        self.reduction = str(loss.reduction)
        self.each = copy.copy(loss)
        self.each.reduction = "none"  # type: ignore[assignment]
        self._weights = lambda: skipper

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return _reduced(self.each(*args, **kwargs), self.reduction, self._weights())


def _reduced(losses: Tensor, reduction: str, skipper: Skipper) -> Tensor:
    if skipper.corrects_by_offset:
        raise ConfigError("a weighted loss cannot add the logits' offsets", remedy="leave out adds_logit_offset")
    if losses.requires_grad and skipper.policy.skips_inputs and skipper.weights is not None:
        weights = skipper.weights.to(losses.device)
        if not weights.numel() or losses.numel() % weights.numel():
            raise ConfigError(f"the loss has {losses.numel()} values for a batch of {weights.numel()} samples")
        losses = losses.reshape(weights.numel(), -1) * weights.unsqueeze(1)
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()
