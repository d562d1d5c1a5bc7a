"""What an optimizer's step reads of a backward pass, kept as it was: torch is done with it when backward ends.

Ids may lie in a buffer that the next batch is read into, by numpy say, where no tensor's version tells of it. The
gradient of what was looked up may lie in memory that became a parameter's ``.grad`` (one added to it, in a batch of
one), to be clipped or added to. Memory that somebody else still holds when the backward pass has ended is copied.
"""

from __future__ import annotations

import threading
import weakref
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from slipstream.errors import UnsupportedOption
from slipstream.kernels.types import Lookups

_holders: Any = getattr(torch._C, "_storage_Use_Count", None)
_running: Any = getattr(torch._C, "_current_graph_task_id", None)
_MANY_PASSES = 8
"""Backward passes at a time, of several threads or nested, from which on those that ended in an error are removed."""
_SMALL = 16384
"""Elements that are copied in some microseconds."""

_lock = threading.Lock()
_passes: dict[int, list[tuple[weakref.ref[Tensor], int]]] = {}
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
    if number < 0 or tensor.numel() <= _SMALL:
        return tensor.detach().clone()
    kept = tensor.detach()
    version = 0 if kept.is_inference() else kept._version
    with _lock:
        others = _passes.get(number)
        if others is not None:
            others.append((weakref.ref(kept), version))
            return kept
        if len(_passes) >= _MANY_PASSES:
            for gone in [key for key, tensors in _passes.items() if all(tensor() is None for tensor, _ in tensors)]:
                del _passes[gone]
        _passes[number] = [(weakref.ref(kept), version)]
    cast(Any, torch.autograd.Variable)._execution_engine.queue_callback(partial(_end, number))
    return kept


def _end(number: int) -> None:
    with _lock:
        found = [(tensor(), version) for tensor, version in _passes.pop(number, [])]
    # By the memory that it is in: parts of one tensor may share theirs.
    sharing: dict[int, tuple[Any, list[Tensor]]] = {}
    changed = set[int]()
    for tensor, version in found:
        if tensor is not None:
            storage = tensor.untyped_storage()
            sharing.setdefault(storage._cdata, (storage, []))[1].append(tensor)
            if not tensor.is_inference() and tensor._version != version:
                changed.add(storage._cdata)
    del found
    spoilt = False
    for key, (storage, parts) in sharing.items():
        alone = _holders(key) <= _ALONE + len(parts) - 1
        # They have one version, too: where nobody else is left, it was the rest of a larger tensor that was changed.
        spoilt |= key in changed and not (alone and storage.nbytes() > sum(part.nbytes for part in parts))
        if not alone:
            for part in parts:
                part.data = part.clone()
    if spoilt:
        raise UnsupportedOption(
            "the gradient of what was looked up, or its ids, were changed in place before the backward pass had ended",
            remedy="give the lookup a gradient of its own: emb(ids) * 1.0",
        )


def _alone() -> int:
    """Holders of memory that one tensor has, the storage that is asked among them."""
    tensor = torch.empty(1)
    return _holders(tensor.untyped_storage()._cdata) if _holders is not None else 0


_ALONE = _alone()
