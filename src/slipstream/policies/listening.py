"""How a Skipper's policy hears of lookups, and stops to when the Skipper is gone."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

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


def stop_listening(tables: Iterable[weakref.ref[Gated]], listener: Callable[[Any, Tensor], None]) -> None:
    """Takes the listener off the tables that there still are."""
    for table in (reference() for reference in tables):
        if table is not None and listener in table.listeners:
            table.listeners.remove(listener)
