"""What an optimizer's step reads of a backward pass, kept as it was: torch is done with it when backward ends.

Ids may lie in a buffer that the next batch is read into, by numpy say, where no tensor's version tells of it. The
gradient of what was looked up may lie in memory that became a parameter's ``.grad`` (one added to it, in a batch of
one), to be clipped or added to. Memory that somebody else still holds when the backward pass has ended is copied.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from slipstream.errors import UnsupportedOption
from slipstream.kernels.types import Lookups

_holders: Any = getattr(torch._C, "_storage_Use_Count", None)
_running: Any = getattr(torch._C, "_current_graph_task_id", None)
_MOST_PASSES = 8
"""Backward passes at a time, of several threads or nested, beyond which some must have ended in an error."""

_lock = threading.Lock()
_passes: dict[int, list[tuple[Tensor, int]]] = {}
"""What the running backward passes have handed over, and its version then."""


def keep_lookups(lookups: Lookups) -> Lookups:
    """The lookups, which nobody else can change when the backward pass has ended."""
    offsets, weights = lookups.offsets, lookups.sample_weights
    return Lookups(
        keep(lookups.ids),
        None if offsets is None else keep(offsets),
        lookups.num_features,
        None if weights is None else keep(weights),
        lookups.mean,
        lookups.padding,
    )


def keep(tensor: Tensor) -> Tensor:
    """The tensor, which nobody else can change when the backward pass has ended; outside of one a copy.

    Raises (from ``backward()``):
        UnsupportedOption: It was changed before that.
    """
    number = -1 if _holders is None or _running is None else _running()
    if number < 0:
        return tensor.detach().clone()
    kept = tensor.detach()
    version = 0 if kept.is_inference() else kept._version
    with _lock:
        others = _passes.get(number)
        if others is not None:
            others.append((kept, version))
            return kept
        over = [_passes.popitem()[1] for _ in range(len(_passes) + 1 - _MOST_PASSES)]
        _passes[number] = [(kept, version)]
    for tensors in over:
        _separate(tensor for tensor, _ in tensors)
    cast(Any, torch.autograd.Variable)._execution_engine.queue_callback(partial(_end, number))
    return kept


def _end(number: int) -> None:
    with _lock:
        tensors = _passes.pop(number, [])
    changed = any(version != tensor._version for tensor, version in tensors if not tensor.is_inference())
    _separate(tensor for tensor, _ in tensors)
    if changed:
        raise UnsupportedOption(
            "the gradient of what was looked up, or its ids, were changed in place before the backward pass had ended",
            remedy="give the lookup a gradient of its own: emb(ids) * 1.0",
        )


def _separate(tensors: Iterable[Tensor]) -> None:
    """Give a copy to those whose memory others have, too; parts of one tensor may share theirs."""
    sharing: dict[int, tuple[Any, list[Tensor]]] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        sharing.setdefault(storage._cdata, (storage, []))[1].append(tensor)
    for storage, parts in sharing.values():
        if _holders(storage._cdata) > _ALONE + len(parts) - 1:
            for part in parts:
                part.data = part.clone()


def _alone() -> int:
    """Holders of memory that one tensor has, the storage that is asked among them."""
    tensor = torch.empty(1)
    return _holders(tensor.untyped_storage()._cdata) if _holders is not None else 0


_ALONE = _alone()
