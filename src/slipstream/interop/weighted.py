"""Losses of other libraries, weighted as an input policy asks."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from slipstream.errors import ConfigError
from slipstream.policies import Skipper

_OF_CLASSES = (functional.cross_entropy, functional.nll_loss)


def weighted(loss: Callable[..., Tensor], skipper: Skipper) -> Callable[..., Tensor]:
    """A loss that multiplies each sample's part by the weight that the skipper gave it.

    For training steps that another library owns, and that call ``loss(prediction, target)`` or
    ``loss(prediction, target, reduction="mean")``. Outside of training (where no argument needs a gradient) and for the
    policies that skip no inputs it is the loss as it was. A mean is that over the values; torch's of class indices
    divides by class weights and leaves out what is ignored, and is refused where there are such.

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

        def call(*args: Any, reduction: str = "mean", **kwargs: Any) -> Tensor:
            weights = _weights(skipper, (*args, *kwargs.values()))
            if weights is None:
                return loss(*args, reduction=reduction, **kwargs)
            if loss in _OF_CLASSES and reduction == "mean":
                given = inspect.signature(loss).bind(*args, **kwargs).arguments
                _refuse_uneven(given["target"], given.get("weight"), given.get("ignore_index", -100))
            return _reduced(loss(*args, reduction="none", **kwargs), reduction, weights)

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
        self._skipper = lambda: skipper

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        weights = _weights(self._skipper(), (*args, *kwargs.values(), *self.parameters()))
        if weights is None:
            self.each.reduction = self.reduction  # type: ignore[assignment]
            try:
                return self.each(*args, **kwargs)
            finally:
                self.each.reduction = "none"  # type: ignore[assignment]
        if isinstance(self.each, nn.CrossEntropyLoss | nn.NLLLoss) and self.reduction == "mean":
            target = args[1] if len(args) > 1 else kwargs["target"]
            _refuse_uneven(target, self.each.weight, self.each.ignore_index)
        return _reduced(self.each(*args, **kwargs), self.reduction, weights)


def _weights(skipper: Skipper, arguments: Iterable[object]) -> Tensor | None:
    """float32 [B]; None: the loss is what it was, since no input was skipped or nothing is trained."""
    if skipper.corrects_by_offset:
        raise ConfigError("a weighted loss cannot add the logits' offsets", remedy="leave out adds_logit_offset")
    trained = torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)
    return skipper.weights if trained and skipper.policy.skips_inputs else None


def _refuse_uneven(target: Tensor, weight: Tensor | None, ignored: int) -> None:
    """Raise ConfigError where torch's mean over class indices is not that over the values."""
    if weight is not None or (not target.is_floating_point() and bool((target == ignored).any())):
        raise ConfigError(
            "the mean of a loss with class weights or ignored targets cannot be weighted by sample",
            remedy="use reduction='sum', divided by the batch size, or weigh reduction='none' by skipper.weights",
        )


def _reduced(losses: Tensor, reduction: str, weights: Tensor) -> Tensor:
    if reduction not in ("none", "mean", "sum"):
        raise ConfigError(f"reduction={reduction!r} cannot be weighted by sample", remedy="use mean, sum or none")
    if not weights.numel() or losses.numel() % weights.numel():
        raise ConfigError(f"the loss has {losses.numel()} values for a batch of {weights.numel()} samples")
    weighed = losses.reshape(weights.numel(), -1) * weights.to(losses.device).unsqueeze(1)
    losses = weighed.reshape(losses.shape)
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()
