"""How a Skipper's policy hears of lookups, and stops to when the Skipper is gone."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from slipstream.embedding.table import Table
from slipstream.policies.base import Gated

if TYPE_CHECKING:
    from slipstream.policies.skipper import Skipper


def listener_of(skipper: Skipper) -> Callable[[Any, Tensor], None]:
    """Tells the Skipper's policy of lookups, and keeps neither of them alive."""
    reference = weakref.ref(skipper)

    def listen(table: Any, ids: Tensor) -> None:
        alive = reference()
        if alive is not None:
            alive.policy.observe_lookups(table, ids)

    return listen


def stop_listening(
    tables: Iterable[tuple[weakref.ref[Gated], object]], listener: Callable[[Any, Tensor], None]
) -> None:
    """Takes the listener and the policy's sampler off the tables that there still are.

    Args:
        tables: Each with the sampler that the policy gave it, if any.
        listener: The Skipper's.
    """
    for reference, sampler in tables:
        table = reference()
        if table is None:
            continue
        if listener in table.listeners:
            table.listeners.remove(listener)
        if sampler is not None and isinstance(table, Table) and table.sampler is sampler:
            table.sampler = None
