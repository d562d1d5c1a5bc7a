"""Lookups as ``torch.library`` operators, so that ``torch.compile`` sees no graph break at an embedding.

Forward is ``slipstream::pool``. Its backward, ``slipstream::row_gradients``, leaves the row gradients on the tables:
a side effect that a compiled graph must not drop, so it
returns the (zero) gradient of the site's one-element token, which the graph does need.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from slipstream.embedding.held import keep, keep_lookups
from slipstream.embedding.table import Site, Table
from slipstream.embedding.unseen import refuse_ddp, refuse_other_weights, refuse_transforms
from slipstream.errors import ConfigError, UnsupportedOption
from slipstream.kernels import reference, registry
from slipstream.kernels.types import Lookups


def _lookups(
    ids: Tensor,
    offsets: Tensor | None,
    sample_weights: Tensor | None,
    features: int,
    mean: bool,
    padding: Sequence[int],
) -> Lookups:
    return Lookups(ids, offsets, features, sample_weights, mean, tuple(padding))


def _batch_size(ids: Tensor, offsets: Tensor | None, features: int) -> Any:
    return ids.shape[0] if offsets is None else (offsets.shape[0] - 1) // features


@torch.library.custom_op("slipstream::pool", mutates_args=())
def pool(
    token: Tensor,
    weights: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    sample_weights: Tensor | None,
    handle: int,
    mean: bool,
    padding: Sequence[int],
    out_dtype: torch.dtype,
) -> Tensor:
    """Pooled rows [B, F, D].

    See :func:`slipstream.kernels.registry.pool`. Gradients reach ``sample_weights`` and, through ``handle``, the
    site's tables.
    """
    refuse_ddp(Site.tables_of(handle))
    weights = [weight.detach() for weight in weights]
    return registry.pool(weights, _lookups(ids, offsets, sample_weights, len(weights), mean, padding), out_dtype)


@pool.register_fake
def _(
    token: Tensor,
    weights: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None,
    sample_weights: Tensor | None,
    handle: int,
    mean: bool,
    padding: Sequence[int],
    out_dtype: torch.dtype,
) -> Tensor:
    size = _batch_size(ids, offsets, len(weights))
    return weights[0].new_empty((size, len(weights), weights[0].shape[1]), dtype=out_dtype)


@torch.library.custom_op("slipstream::row_gradients", mutates_args=())
def row_gradients(
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    sample_weights: Tensor | None,
    handle: int,
    mean: bool,
    padding: Sequence[int],
    call: int,
) -> Tensor:
    """Leave the gradient [B, F, D] of pooled rows on the tables of a site; returns the token's gradient, zero.

    ``call`` tells lookups apart: compilers merge calls that are alike, and two lookups of equal ids may well have equal
    gradients.
    """
    # A compiled graph uses its buffers again as soon as this operator returns; the row gradients live until the step.
    held = [None if tensor is None else tensor.clone() for tensor in (ids, offsets, sample_weights)]
    lookups = _lookups(cast(Tensor, held[0]), held[1], held[2], grad.shape[1], mean, padding)
    Site.of(handle).receive(lookups, grad.clone())
    return grad.new_zeros(1, dtype=torch.float32)


@row_gradients.register_fake
def _(
    grad: Tensor,
    ids: Tensor,
    offsets: Tensor | None,
    sample_weights: Tensor | None,
    handle: int,
    mean: bool,
    padding: Sequence[int],
    call: int,
) -> Tensor:
    return grad.new_empty(1, dtype=torch.float32)


def _of_factors(grad: Tensor) -> torch.dtype:
    return torch.float64 if grad.dtype == torch.float64 else torch.float32


@torch.library.custom_op("slipstream::sample_weight_gradients", mutates_args=())
def sample_weight_gradients(
    grad: Tensor, weights: Sequence[Tensor], ids: Tensor, offsets: Tensor, padding: Sequence[int]
) -> Tensor:
    """Gradient [N] of each lookup's factor: its row times the gradient of its bag, summed over the D elements."""
    features = len(weights)
    size = (offsets.numel() - 1) // features
    out = grad.new_zeros(ids.shape[0], dtype=_of_factors(grad))
    for feature, weight in enumerate(weights):
        first, last = int(offsets[feature * size]), int(offsets[(feature + 1) * size])
        lookups = Lookups(ids, offsets, features)
        rows, bags, _ = reference.feature_lookups(lookups, feature)
        products = (weight.detach()[rows] * grad[:, feature][bags]).sum(1)
        out[first:last] = products.masked_fill(rows == (padding[feature] if padding else -1), 0.0)
    return out


@sample_weight_gradients.register_fake
def _(grad: Tensor, weights: Sequence[Tensor], ids: Tensor, offsets: Tensor, padding: Sequence[int]) -> Tensor:
    return grad.new_empty(ids.shape[0], dtype=_of_factors(grad))


_calls = itertools.count()


def _setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    token, weights, ids, offsets, sample_weights, handle, mean, padding, _ = inputs
    # The weights are needed only for the gradient of the factors; saving them else would keep autograd from
    # seeing in-place updates of them as harmless.
    needs_weights = sample_weights is not None and sample_weights.requires_grad
    ctx.save_for_backward(ids, offsets, sample_weights, *(weights if needs_weights else ()))
    ctx.handle, ctx.mean, ctx.padding, ctx.count = handle, mean, padding, len(weights)
    ctx.token_needed, ctx.call = token.requires_grad, next(_calls)


def _refuse_graph(grad: Tensor, tables: Sequence[Table]) -> None:
    """Raise UnsupportedOption in a backward pass with ``create_graph`` whose row gradients would have a graph."""
    if torch.is_grad_enabled() and grad.requires_grad and any(table.weight.requires_grad for table in tables):
        raise UnsupportedOption(
            "backward(create_graph=True) reaches a table, and row gradients have no gradients of their own: a penalty "
            "on them would be without the tables' part",
            remedy="take gradients of looked-up rows or of dense parameters by torch.autograd.grad(loss, inputs, "
            "create_graph=True), or differentiate slipstream.export.to_plain(model), if its tables are nn.Embedding "
            "(torch has no second derivative of nn.EmbeddingBag)",
        )


def _backward(ctx: Any, grad: Tensor) -> Any:
    ids, offsets, sample_weights, *weights = ctx.saved_tensors
    token_grad = factor_grad = None
    grad = grad.contiguous()
    if ctx.token_needed:
        _refuse_graph(grad, Site.tables_of(ctx.handle))
        token_grad = row_gradients(grad, ids, offsets, sample_weights, ctx.handle, ctx.mean, ctx.padding, ctx.call)
    if weights:
        factor_grad = sample_weight_gradients(grad, weights, ids, offsets, ctx.padding)
    no_padding = None if ctx.padding else []  # torch takes an empty list for a list of tensors
    return token_grad, [None] * ctx.count, None, None, factor_grad, None, None, no_padding, None


pool.register_autograd(_backward, setup_context=_setup)


class _LookUp(torch.autograd.Function):
    """The same lookup without the operator's dispatch, which for many tables costs more than the kernel."""

    @staticmethod
    def forward(
        ctx: Any, token: Tensor, site: Site, weights: Sequence[Tensor], lookups: Lookups, dtype: torch.dtype
    ) -> Tensor:
        ctx.site, ctx.lookups, ctx.version = site, lookups, lookups.version()
        return registry.pool(weights, lookups, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        if ctx.version != ctx.lookups.version():
            raise UnsupportedOption(
                "the ids or sample weights of a lookup were changed in place between forward and backward",
                remedy="give each forward pass tensors of its own (ids.clone())",
            )
        _refuse_graph(grad, ctx.site.tables)
        ctx.site.receive(keep_lookups(ctx.lookups), keep(grad))
        return None, None, None, None, None


def _is_plain(*tensors: Tensor | None) -> bool:
    """No compiler, no fake tensors, no gradient for the lookups' factors: the short way will do."""
    return not torch.compiler.is_compiling() and all(
        tensor is None or (type(tensor) in _PLAIN and not tensor.requires_grad) for tensor in tensors
    )


_PLAIN = (Tensor, torch.nn.Parameter)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def look_up(
    site: Site,
    weights: Sequence[Tensor],
    ids: Tensor,
    offsets: Tensor | None = None,
    sample_weights: Tensor | None = None,
    *,
    mean: bool = False,
    padding: Sequence[int] = (),
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Pooled rows [B, F, D] of a site's tables, with row gradients in backward.

    Args:
        site: The place of the lookup; its handle is what backward finds the tables by.
        weights: For each feature its table's parameter [R_f, D].
        ids: Integers [B, F], or [N] with offsets.
        offsets: None, or int [F * B + 1].
        sample_weights: None, or float [N].
        mean: Divide bags by their number of lookups.
        padding: For each feature the row without gradient, or -1; empty for none.
        out_dtype: dtype of the result; the tables' by default.

    Raises:
        ConfigError: Ids or offsets are no integers.
        UnsupportedOption: Gradients would not reach whoever waits for them (see :mod:`slipstream.embedding.unseen`).
    """
    if ids.dtype not in _INTEGERS or (offsets is not None and offsets.dtype not in _INTEGERS):
        of_offsets = "" if offsets is None else f", offsets of {offsets.dtype}"
        raise ConfigError(f"ids of {ids.dtype}{of_offsets}", remedy="pass integers: ids.long()")
    trained = any(weight.requires_grad for weight in weights)
    token = site.token if trained else site.frozen_token
    dtype = out_dtype or weights[0].dtype
    if trained:
        refuse_other_weights(weights, site.tables)
    if _is_plain(ids, offsets, sample_weights) and type(weights[0]) in _PLAIN:
        refuse_ddp(site.tables)
        lookups = Lookups(ids, offsets, len(weights), sample_weights, mean, tuple(padding))
        try:
            return cast(Tensor, _LookUp.apply(token, site, weights, lookups, dtype))
        except RuntimeError as error:
            refuse_transforms(error)
            raise
    plain = [weight.detach() for weight in weights]
    return pool(token, plain, ids, offsets, sample_weights, site.handle, mean, list(padding), dtype)
