"""Losses of other libraries, weighted as an input policy asks."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from slipstream.errors import ConfigError
from slipstream.policies import Skipper

_OF_CLASSES = (functional.cross_entropy, functional.nll_loss)
_REMEDY = "use reduction='sum', divided by the batch size, or weigh reduction='none' by skipper.weights"


def weighted(loss: Callable[..., Tensor], skipper: Skipper) -> Callable[..., Tensor]:
    """A loss that multiplies each sample's part by the weight that the skipper gave it.

    For training steps that another library owns, and that call ``loss(prediction, target)`` or
    ``loss(prediction, target, reduction="mean")``. Outside of training (where nothing needs a gradient) and for the
    policies that skip no inputs it is the loss as it was. A mean is taken to be that over the values; torch's of class
    indices divides by class weights and leaves out what is ignored, and is refused where there are such (functions of
    one's own are not looked into).

    Args:
        loss: A functional loss that takes ``reduction``, or a module with a ``reduction``; one value for each sample.
        skipper: Hands out the batches, one for each call of the loss.

    Returns:
        The loss; of the kind (module or function) that was given.

    Raises:
        ConfigError: The loss is a module that has no ``reduction``; in a call, if the number of values of the loss is
            not a multiple of the number of samples handed out, if the Skipper corrects by offsets of the logits, or if
            the reduction is neither mean, sum nor none, or a mean by class weights or with ignored targets.
    """
    if not isinstance(loss, nn.Module):
        signature = inspect.signature(loss) if _unwrapped(loss) in _OF_CLASSES else None

        def call(*args: Any, reduction: str = "mean", **kwargs: Any) -> Tensor:
            def reduced(reduction: str) -> Tensor:
                return loss(*args, reduction=reduction, **kwargs)

            weights = _weights(skipper)
            if weights is not None and signature is not None and reduction == "mean":
                bound = signature.bind(*args, **kwargs)
                bound.apply_defaults()
                given = bound.arguments
                _refuse_uneven(given["target"], given["weight"], given["ignore_index"])
            return _weighed(reduced, reduction, weights)

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
        self._skipper = lambda: skipper

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        weights = _weights(self._skipper())
        if weights is not None and self.reduction == "mean":
            if isinstance(self.each, nn.CTCLoss):
                raise ConfigError("CTCLoss divides by lengths, which cannot be weighted by sample", remedy=_REMEDY)
            if isinstance(self.each, nn.CrossEntropyLoss | nn.NLLLoss):
                target = args[1] if len(args) > 1 else kwargs["target"]
                _refuse_uneven(target, self.each.weight, self.each.ignore_index)

        def reduced(reduction: str) -> Tensor:
            self.each.reduction = reduction  # type: ignore[assignment]
            return self.each(*args, **kwargs)

        return _weighed(reduced, self.reduction, weights)


def _weights(skipper: Skipper) -> Tensor | None:
    """float32 [B]; None: the loss is what it was, since no input is skipped or nothing is trained."""
    if skipper.corrects_by_offset:
        raise ConfigError("a weighted loss cannot add the logits' offsets", remedy="leave out adds_logit_offset")
    return skipper.weights if torch.is_grad_enabled() and skipper.policy.skips_inputs else None


def _unwrapped(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function that a partial one calls."""
    while isinstance(loss, partial):
        loss = loss.func
    return loss


def _refuse_uneven(target: Tensor, weight: Tensor | None, ignored: int) -> None:
    """Raise ConfigError where torch's mean over class indices is not that over the values."""
    if weight is not None or (not target.is_floating_point() and bool((target == ignored).any())):
        raise ConfigError(
            "the mean of a loss with class weights or ignored targets cannot be weighted by sample",
            remedy=_REMEDY,
        )


def _weighed(reduced: Callable[[str], Tensor], reduction: str, weights: Tensor | None) -> Tensor:
    """A loss by its reduction, of the values for each sample times the weights."""
    if weights is None:
        return reduced(reduction)
    losses = reduced("none")
    if not losses.requires_grad:  # a prediction in training mode, of nothing that is trained
        return reduced(reduction)
    if reduction not in ("none", "mean", "sum"):
        raise ConfigError(f"reduction={reduction!r} cannot be weighted by sample", remedy="use mean, sum or none")
    if not weights.numel() or losses.numel() % weights.numel():
        raise ConfigError(f"the loss has {losses.numel()} values for a batch of {weights.numel()} samples")
    weighed = losses.reshape(weights.numel(), -1) * weights.to(losses.device).unsqueeze(1)
    losses = weighed.reshape(losses.shape)
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()
